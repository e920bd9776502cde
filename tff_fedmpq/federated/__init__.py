"""The federated round and the schemes that run in it."""
from tff_fedmpq.federated.fedmpq import build_fedmpq, fedmpq_scheme
from tff_fedmpq.federated.process import build_process

"""The federated round, and the schemes that run in it.

process.py           the round: who calls what, and what is placed where
server.py            what the server does: messages down, the next state, measurements
messages.py          what travels, and how many bits it has
local_training.py    what a client does with its examples
client_work.py       the same as a TFF computation
uplink.py            what goes up: models, or their changes
update_uplink.py     the same: quantized updates of float models
aggregation.py       how the server adds it up
model_spec.py        which variables of a Keras model are kernels, and which the rest
scheme.py            a compared scheme as a point in a small space
fedmpq.py, ...       the points: one file per scheme
schemes.py           all of them by name
"""

from tff_fedmpq._tff import require_tff

require_tff()

from tff_fedmpq.federated.aqfl import build_aqfl, build_aqfl_literal  # noqa: E402
from tff_fedmpq.federated.fedavg import build_fedavg  # noqa: E402
from tff_fedmpq.federated.fedmpq import build_fedmpq, build_fedmpq_literal  # noqa: E402
from tff_fedmpq.federated.fedpaq import build_fedpaq  # noqa: E402
from tff_fedmpq.federated.fpq8 import build_fpq8  # noqa: E402
from tff_fedmpq.federated.local_training import LocalTrainingConfig  # noqa: E402
from tff_fedmpq.federated.process import build_process  # noqa: E402
from tff_fedmpq.federated.scheme import Scheme  # noqa: E402
from tff_fedmpq.federated.schemes import (  # noqa: E402
    ALL_SCHEMES,
    SCHEMES,
    build_scheme,
)
from tff_fedmpq.federated.uveqfed import build_uveqfed  # noqa: E402

__all__ = [
    "ALL_SCHEMES",
    "SCHEMES",
    "LocalTrainingConfig",
    "Scheme",
    "build_aqfl",
    "build_aqfl_literal",
    "build_fedavg",
    "build_fedmpq",
    "build_fedmpq_literal",
    "build_fedpaq",
    "build_fpq8",
    "build_process",
    "build_scheme",
    "build_uveqfed",
]

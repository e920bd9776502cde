"""All schemes by name, without importing TensorFlow."""

from collections.abc import Mapping
from typing import Callable

from tff_fedmpq.baselines.aqfl import AQFLConfig
from tff_fedmpq.baselines.fedavg import FedAvgConfig
from tff_fedmpq.baselines.fedpaq import FedPAQConfig
from tff_fedmpq.baselines.fpq8 import FPQ8Config
from tff_fedmpq.baselines.uveqfed import UVeQFedConfig
from tff_fedmpq.federated.config import LocalTrainingConfig
from tff_fedmpq.federated.fedmpq import FedMPQConfig

# Constructors of configurations: the paper's Table 1, then literal readings.
SCHEMES: Mapping[str, Callable[..., LocalTrainingConfig]] = {
    "fedavg": FedAvgConfig,
    "fedpaq": FedPAQConfig,
    "uveqfed": UVeQFedConfig,
    "fpq8": FPQ8Config,
    "aqfl": AQFLConfig,
    "fedmpq": FedMPQConfig,
    "aqfl_literal": AQFLConfig.literal,
    "fedmpq_literal": FedMPQConfig.literal,
}

"""Numbers that the paper reports: test accuracy in %.

Chen & Vikalo, "Mixed-Precision Quantization for Federated Learning on
Resource-Constrained Heterogeneous Devices", CVPR 2024, Tables 1 to 4. Schemes go by
the names of `federated.schemes.SCHEMES`. Of Figure 2 no numbers are printed.
"""

from __future__ import annotations

from collections.abc import Mapping

SCHEME_TITLES: Mapping[str, str] = {
    "fedavg": "FP32 FedAvg",
    "fedpaq": "FedPAQ",
    "uveqfed": "UVeQFed",
    "fpq8": "FPQ8",
    "aqfl": "AQFL",
    "fedmpq": "FedMPQ",
}
DATASET_TITLES: Mapping[str, str] = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny_imagenet": "Tiny-ImageNet",
}

ALPHAS = (0.1, 0.5, 1.0)
# Data set -> scheme -> accuracy at each of `ALPHAS`; ten clients.
TABLE_1: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "cifar10": {
        "fedavg": (60.3, 77.5, 82.1),
        "fedpaq": (56.3, 77.0, 81.2),
        "uveqfed": (56.8, 76.7, 81.5),
        "fpq8": (54.5, 68.4, 70.8),
        "aqfl": (44.3, 58.0, 62.1),
        "fedmpq": (49.1, 67.1, 69.3),
    },
    "cifar100": {
        "fedavg": (40.3, 47.0, 49.6),
        "fedpaq": (39.7, 46.8, 48.4),
        "uveqfed": (38.6, 46.5, 48.8),
        "fpq8": (35.4, 41.3, 42.3),
        "aqfl": (23.8, 32.9, 36.1),
        "fedmpq": (31.7, 41.1, 43.6),
    },
    "tiny_imagenet": {
        "fedavg": (24.6, 35.1, 38.1),
        "fedpaq": (22.9, 34.6, 37.5),
        "uveqfed": (21.3, 34.3, 37.4),
        "fpq8": (23.8, 33.4, 35.6),
        "aqfl": (17.1, 23.5, 25.3),
        "fedmpq": (20.3, 27.0, 28.2),
    },
}

CLIENTS = (10, 20, 40)
# Data set -> scheme -> accuracy with each of `CLIENTS`; alpha 0.5.
TABLE_2: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "cifar10": {
        "fedavg": (77.5, 68.1, 64.5),
        "fedpaq": (77.0, 61.5, 59.9),
        "uveqfed": (76.7, 66.4, 63.2),
        "fpq8": (68.4, 56.3, 48.4),
        "aqfl": (58.0, 49.7, 37.3),
        "fedmpq": (67.1, 56.8, 45.4),
    },
    "cifar100": {
        "fedavg": (47.0, 40.1, 35.0),
        "fedpaq": (46.8, 38.9, 33.1),
        "uveqfed": (46.5, 39.5, 34.1),
        "fpq8": (41.3, 36.2, 31.9),
        "aqfl": (32.9, 20.4, 13.9),
        "fedmpq": (41.1, 26.1, 19.9),
    },
}

EPSILONS = (0.01, 0.02, 0.03, 0.04, 0.05)
# Lambda -> accuracy of FedMPQ at each of `EPSILONS`; CIFAR-10, alpha 0.5.
TABLE_3: Mapping[float, tuple[float, ...]] = {
    0.1: (64.1, 63.4, 65.9, 63.9, 64.8),
    0.01: (66.4, 68.0, 67.1, 64.7, 64.3),
    0.001: (67.1, 70.0, 65.5, 64.7, 64.4),
}

# Data set -> row -> accuracy; alpha 0.5. Rows go by the names of `tables.ABLATION`.
TABLE_4: Mapping[str, Mapping[str, float]] = {
    "cifar10": {
        "aqfl": 58.0,
        "lasso": 56.8,
        "msb": 55.1,
        "msb+lasso": 56.2,
        "msb+alg2": 65.4,
        "all": 67.1,
    },
    "cifar100": {
        "aqfl": 32.9,
        "lasso": 32.6,
        "msb": 28.7,
        "msb+lasso": 31.8,
        "msb+alg2": 40.1,
        "all": 41.1,
    },
}

FIGURE_2_EPOCHS = (1, 5, 10, 15, 20)
FIGURE_2_SCHEMES = ("fedavg", "fpq8", "aqfl", "fedmpq")

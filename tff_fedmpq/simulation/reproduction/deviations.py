"""Where our runs differ from the paper's, for the document.

Each entry restates what the module that it names says of itself; that module is the
place to look, and to change first.
"""

from __future__ import annotations

from typing import NamedTuple


class Deviation(NamedTuple):
    """A choice that the paper makes otherwise, or does not state.

    Attributes:
      what: is chosen, and instead of what.
      why: it is.
      where: the module, and the option that undoes it where there is one.
    """

    what: str
    why: str
    where: str


DEVIATIONS = (
    Deviation(
        "Codes are a sign and b - 1 magnitude planes (half-integer zero point) instead "
        "of offset binary with z = 2^(b-1).",
        "b bits are counted as b bits; a 1-bit layer is +-1 instead of all zero; the "
        "top plane of magnitudes can be nearly empty, a sign never is.",
        '`quantization/representation.py`; `representation="offset_binary"`',
    ),
    Deviation(
        "Scales have the least squared error instead of s = 2 max|W|.",
        "At 1 and 2 bits the largest weight is a poor guide. With either scale few top "
        "planes get as empty as epsilon = 0.03: MSB pruning fires in few rounds, or in "
        "none (docs/study.md, questions 2 and 6).",
        '`quantization/scales.py`; `scale_rule="max"`',
    ),
    Deviation(
        "MSB pruning saturates the weights that held the pruned bit, and keeps the "
        "step size, instead of dropping the bit.",
        "Dropping it turns a weight of 2.3 into 0.3.",
        "`quantization/bit_planes.py`; `saturate=False` drops it; the step size is "
        "always kept.",
    ),
    Deviation(
        "FedMPQ spends budgets where a bit removes the most quantization error for its "
        "price, instead of by Algorithm 2. Bit-widths then follow from layer sizes and "
        "budgets, and from the bits that MSB pruning took off; a client has uniform "
        "bits until its first round.",
        "Algorithm 2 gives small layers up to 8 bits, and leaves large ones 1 on "
        "devices of few bits: docs/study.md, question 6.",
        '`allocation/rate_distortion.py`; `allocation="pruning_growing"`',
    ),
    Deviation(
        "Where it is used, Algorithm 2 never exceeds a budget, and its growing reaches "
        "the first layer of the order; averaged bit-widths are rounded to nearest.",
        "As printed it overshoots Eq. 2 by up to a layer, and an 8-bit client can "
        "never use its budget.",
        '`allocation/prune_and_grow.py`; `allocation="literal_pruning_growing"`',
    ),
    Deviation(
        "eta, of quantized kernels, is a rate of weights that falls from 0.1 to 0 "
        "along half a cosine, instead of the rate of codes of Eq. 6-10; BatchNorm, "
        "biases and float models learn at a constant 0.1.",
        "By Eq. 6-10 a weight moves by eta s^2 / 3 times its gradient, so wide layers, "
        "whose scale s is small, hardly move; rounding at random makes noise that a "
        "constant rate never loses.",
        '`federated/local_training.py`; `learning_rate_unit="code"`, '
        '`learning_rate_decay="none"`',
    ),
    Deviation(
        "The server adds the clients' weighted mean change to its own float weights, "
        "instead of averaging their models (Eq. 15).",
        "What quantization cut from the weights on their way down is not lost.",
        "`federated/uplink.py`; `error_feedback=False`",
    ),
    Deviation(
        "The integer update is the closed form of Eq. 6-10; the Lasso enters as a "
        "gradient on the code, not plane by plane; 2^(B-1) in Eq. 8-10 is read as "
        "2^B - 1. The update's planes are the code's digits, the Lasso's and pruning's "
        "those of its magnitude. Momentum and weight decay act on the gradient in "
        "float.",
        "The closed form equals the sum over planes without the Lasso; no tensors per "
        "plane are needed.",
        "`quantization/integer_update.py`, `quantization/group_lasso.py`",
    ),
    Deviation(
        "AQFL weighs clients by v_n |D_n|, as FedMPQ does; FP32, FedPAQ, UVeQFed and "
        "FPQ8 by |D_n|.",
        "The paper does not state AQFL's weights; so Table 4's rows differ in three "
        "settings alone.",
        '`federated/aqfl.py`; `aggregation_weight="examples"`',
    ),
    Deviation(
        "ResNets have 1x1 convolutions as shortcuts where the number of filters "
        "changes (He et al.'s option B). All layers are quantized, the first and the "
        "last too; BatchNorm stays in float and is averaged, statistics included.",
        "A plain Keras layer; it adds 1 % of weights.",
        "`keras/resnet.py`",
    ),
    Deviation(
        "Activations are clipped to [0, 6].",
        "The paper leaves their range open; learned or tracked ranges were no better.",
        "`quantization/activations.py`",
    ),
    Deviation(
        "FedPAQ scales each tensor by its largest magnitude instead of its L2 norm.",
        "At 2 to 8 bits the L2 norm of a large tensor leaves noise alone.",
        '`federated/fedpaq.py`; `norm="l2"`',
    ),
    Deviation(
        "UVeQFed scales entries by their tensor's root mean square and chooses one "
        "step such that the measured, entropy-coded size keeps within v_n bits.",
        "At its nominal rates the measured size exceeds the budget at 2 bits.",
        "`federated/uveqfed.py`",
    ),
    Deviation(
        "Layers on clients compute in bfloat16 where the runs below say so; variables "
        "and evaluation stay in float32.",
        "Faster on processors that have it.",
        "`simulation/compute.py`; `--compute=float32`",
    ),
    Deviation(
        "Assumed, for the paper does not state it or we do not know that it does: "
        "random crops and flips of training images; half of the clients in a round in "
        "Table 2 too; alpha 0.5 in Tables 3 and 4 and Figure 2, and CIFAR-10 in Figure "
        "2; the accuracy is that of the global model, with float weights, after the "
        "last round, not the best one.",
        "Something has to be chosen.",
        "`simulation/reproduction/tables.py`, `simulation/evaluation.py`",
    ),
)

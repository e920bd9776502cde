"""FedMPQ: federated learning of mixed-precision quantized networks.

Chen & Vikalo, "Mixed-Precision Quantization for Federated Learning on
Resource-Constrained Heterogeneous Devices", CVPR 2024.

    for each round t:
      for each client n of the round:
        G_n <- quantize(W, b_n)                                      Eq. 3, 14
        for tau epochs: G_n <- integer update of the codes by
            task loss + lambda sum_l M_l/M sum_i ||B_i||_2           Eq. 5-12
        drop nearly empty top planes (density <= epsilon)            Eq. 13
      W <- sum_n p_n dequantize(G_n),  p_n ~ v_n |D_n|               Eq. 15
      b_n <- Pruning-Growing of sum_n p_n b_n to the budget v_n      Eq. 16, Alg. 2

Paper symbols: W global weights, b_n `bit_widths`, v_n `budgets`, |D_n| number of
examples, lambda `lasso`, epsilon `pruning_threshold`, tau `epochs`, eta
`learning_rate`.

Deviations by default, each an option:

* neither group Lasso nor pruning (`lasso`, `pruning_threshold`): bit-widths follow from
  the order of Pruning-Growing alone;
* symmetric levels with magnitude planes, and scales of least squared error
  (`representation`, `scale_rule`): layers of 1 bit can be trained;
* saturating pruning (`pruning_saturates`): weights that held the removed bit keep the
  largest value left;
* no pruning in the last quarter of the rounds (`pruning_end`);
* Pruning-Growing in the order of the quantization error that bits remove (`order`),
  from one bit on before there is an average;
* a learning rate of weights instead of codes, which decays to zero
  (`learning_rate_unit`, `learning_rate_decay`);
* error feedback at the server (`error_feedback`);
* weights |D_n| of clients (`aggregation_weight`): those of 2 bits, a fifth of the
  paper's, have a fifth of the average, not a twelfth;
* BatchNorm statistics per budget (`statistics_per_budget`).

`FedMPQConfig.literal()` has none of them. Even there, Algorithm 2 also grows the first
layer, stays within budgets and rounds the averaged bits; SGD has momentum; activations
are clipped at 6; pruning keeps the step size; steps are rounded to the nearest power of
two, and `step_rounding="up"` is the ceiling that Eq. 6 prints. Where the paper leaves a
choice:

* Eq. 7 holds for every plane, with q_i for the q that it prints;
* a client's scales stay as it received them;
* the Lasso's gradient is taken to first order (`quantization.group_lasso`);
* layers of equal m (db + 1) keep the order of the model.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Callable, ClassVar, Literal, Optional, Union

from tff_fedmpq.federated.builder import builder
from tff_fedmpq.federated.config import (
    LITERAL_CODE_TRAINING,
    CodeTrainingConfig,
    check_not_negative,
)
from tff_fedmpq.lookup import check_bool, lookup

if TYPE_CHECKING:
    from tff_fedmpq.federated.scheme import Scheme

Allocation = Union[Literal["pruning_growing", "uniform"], Callable[..., Any]]
Order = Union[Literal["distortion", "size"], Callable[..., Any]]


@dataclasses.dataclass(frozen=True)
class FedMPQConfig(CodeTrainingConfig):
    """Settings of FedMPQ.

    Attributes:
      lasso: Coefficient lambda of the group Lasso over bit planes; 0 leaves it out.
      pruning_threshold: Density epsilon up to which a top bit plane is pruned after
        local training, 0 to 1; None prunes nothing.
      pruning_saturates: Whether weights that held a pruned bit saturate at the largest
        level left (True) or lose the bit (False).
      pruning_end: Share of the rounds after which nothing is pruned any more, 0 to 1:
        ranges that were halved can widen again, and no bit is lost that no later round
        would grow.
      allocation: Rule of a client's bit-widths within its budget: "pruning_growing"
        (Algorithm 2), "uniform", or an `AllocationPolicy`.
      order: Order in which Pruning-Growing prunes and grows bits: "distortion", "size"
        (the paper's), or an `Order` (`allocation.pruning_growing`).
    """

    name: ClassVar[str] = "fedmpq"

    lasso: float = 0.0
    pruning_threshold: Optional[float] = None
    pruning_saturates: bool = True
    pruning_end: float = 0.75
    allocation: Allocation = "pruning_growing"
    order: Order = "distortion"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self.lasso, "lasso")
        check_bool(self.pruning_saturates, "pruning_saturates")
        if not 0 <= self.pruning_end <= 1:
            raise ValueError(
                f"pruning_end has to be from 0 to 1, found {self.pruning_end!r}."
            )
        threshold = self.pruning_threshold
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(
                f"pruning_threshold has to be None or from 0 to 1, found {threshold!r}."
            )

    @classmethod
    def literal(cls, **changes: Any) -> "FedMPQConfig":
        """Returns the paper's method read literally, with some fields changed."""
        literal = {
            "lasso": 0.01,
            "pruning_threshold": 0.03,
            "pruning_saturates": False,
            "pruning_end": 1.0,
            "order": "size",
            "aggregation_weight": "budget_and_examples",
        }
        return cls(**(LITERAL_CODE_TRAINING | literal | changes))

    def compose(self) -> "Scheme":
        """Returns FedMPQ as a `Scheme`."""
        from tff_fedmpq.allocation import pruning_growing
        from tff_fedmpq.federated.local_training import Pruning
        from tff_fedmpq.federated.scheme import compose_code_scheme

        pruning = None
        if self.pruning_threshold is not None:
            pruning = Pruning(
                self.pruning_threshold, self.pruning_saturates, self.pruning_end
            )
        order = lookup(self.order, pruning_growing.ORDERS, "order")
        grow = functools.partial(pruning_growing.prune_and_grow_graph, order=order)
        uniform = pruning_growing.uniform_bit_widths
        allocations: dict[str, Any] = {"pruning_growing": grow, "uniform": uniform}
        allocation = lookup(self.allocation, allocations, "allocation")
        return compose_code_scheme(
            self,
            lasso=self.lasso,
            pruning=pruning,
            allocation=allocation,
            # The paper's order of layers would fill up one after the other.
            starts_from_one_bit=allocation is grow
            and order is not pruning_growing.size_order,
        )


build_fedmpq = builder(FedMPQConfig)
"""Builds FedMPQ's learning process; the arguments are those of `build_process`."""

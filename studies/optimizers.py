"""Research optimizers that were compared with `IntegerSGD` and did not become defaults.

Each overrides `IntegerSGD.move_codes`, the step of a quantized kernel; float variables
are trained as by `IntegerSGD`.
"""

from __future__ import annotations

import tensorflow as tf

from tff_fedmpq.keras import IntegerSGD, QuantizedKernel
from tff_fedmpq.quantization.code_updates import (
    move_codes,
    nearest_power_of_two,
    step_gain,
)


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq_studies")
class StochasticRoundingSGD(IntegerSGD):
    """Steps of plain SGD on codes, rounded stochastically to whole units.

    `IntegerSGD` without the rounding to powers of two: on average a code moves by
    ``eta K v`` units.

    Args:
      learning_rate: Learning rate of the kernels (eta), as in `IntegerSGD`.
      **kwargs: Arguments of `IntegerSGD`.
    """

    def __init__(self, learning_rate: float = 0.1, **kwargs):
        super().__init__(learning_rate, **{"name": "StochasticRoundingSGD", **kwargs})

    def move_codes(
        self, kernel: QuantizedKernel, velocity: tf.Tensor, index: int
    ) -> None:
        """Moves the codes of a kernel."""
        bit_width = kernel.bit_width.value()
        units = (self._rate_of_codes(kernel) * step_gain(bit_width)) * velocity
        change = tf.floor(self._draw_uniform(velocity.shape, index) - units)
        kernel.codes.assign(move_codes(kernel.codes.value(), change, bit_width))


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq_studies")
class CompensatedSGD(IntegerSGD):
    """Integer steps whose rounding errors are added to the momentum.

    A code that should move down by ``t = eta K v`` units moves by a whole number ``r``
    of units, rounded to a power of two, then stochastically. Without compensation these
    errors are a random walk, whose noise soon exceeds what was learned at few bits,
    where a unit is large. Here the momentum buffer takes up each error,

        v <- v + (t - r) (1 - mu) / (mu eta K),

    so that its future steps amount to ``t - r`` more. A code then stays within about a
    unit of unrounded SGD, and equals it on average, with the same memory: codes and one
    buffer. Errors return over about 1 / (1 - mu) steps. Clipping to the range of the
    codes is not compensated, and the buffer is lost at the end of a client's round.

    Args:
      learning_rate: Learning rate of the kernels (eta), as in `IntegerSGD`.
      **kwargs: Arguments of `IntegerSGD`; `momentum` above 0.

    Raises:
      ValueError: If momentum is 0.
    """

    def __init__(self, learning_rate: float = 0.1, **kwargs):
        super().__init__(learning_rate, **{"name": "CompensatedSGD", **kwargs})
        if not self.momentum > 0:
            raise ValueError(
                "Compensated rounding needs momentum above 0, whose buffer takes up "
                f"the errors; found momentum {self.momentum!r}."
            )

    def move_codes(
        self, kernel: QuantizedKernel, velocity: tf.Tensor, index: int
    ) -> None:
        """Moves the codes, and adds the rounding error to the momentum buffer."""
        bit_width = kernel.bit_width.value()
        gain = step_gain(bit_width)
        rate = self._rate_of_codes(kernel)
        units = gain * nearest_power_of_two(rate * velocity)
        change = tf.floor(self._draw_uniform(velocity.shape, index) - units)
        kernel.codes.assign(move_codes(kernel.codes.value(), change, bit_width))
        # The buffer points uphill and codes move downhill, so the excess is added.
        excess = change + gain * rate * velocity
        share = (1.0 - self.momentum) / self.momentum
        per_unit = tf.math.divide_no_nan(share, gain * rate)
        self.velocities[index].assign_add(per_unit * excess)


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq_studies")
class StraightThroughSGD(IntegerSGD):
    """SGD on float master weights of quantized kernels.

    The usual quantization-aware training: a float copy of the weights takes the SGD
    step at `float_learning_rate`, and codes are its nearest levels. FedMPQ avoids the
    masters, which cost four bytes per weight on the device. They are initialized from
    the codes in the first step; after changing codes, call `reset`. Weight decay acts
    on the dequantized weights.

    Args:
      learning_rate: Not used, nor is its unit.
      **kwargs: Arguments of `IntegerSGD`.
    """

    def __init__(self, learning_rate: float = 0.1, **kwargs):
        super().__init__(learning_rate, **{"name": "StraightThroughSGD", **kwargs})

    def build(self, var_list: list[tf.Variable]) -> None:
        """Also creates masters, float32 in code units; None for float variables."""
        built_before = getattr(self, "_built", False)
        super().build(var_list)
        if not built_before:
            self.masters = [
                self.add_variable(variable.shape, tf.float32, name=f"master_{i}")
                if hasattr(variable, "quantized_kernel")
                else None
                for i, variable in enumerate(var_list)
            ]

    def move_codes(
        self, kernel: QuantizedKernel, velocity: tf.Tensor, index: int
    ) -> None:
        """Moves the master, and sets the codes to its nearest levels."""
        master = self.masters[index]
        present = tf.cond(
            tf.equal(self.iterations, 0), kernel.signed_levels, master.read_value
        )
        # A gradient on codes is delta times that on weights, and masters are in codes.
        rate = self.float_learning_rate / tf.square(kernel.step_size())
        master.assign(present - rate * velocity)
        codes = kernel.representation.nearest_codes(master, kernel.bit_width)
        kernel.codes.assign(codes)

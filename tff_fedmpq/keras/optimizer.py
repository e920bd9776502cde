"""SGD for quantized models: integer steps for codes, ordinary steps for the rest.

Every trainable variable has a momentum buffer ``v <- mu v + (gradient + decay w)``.
Float variables (BatchNorm, biases, layers left in float) move by ``-eta_float v``;
codes move by whole units, by FedMPQ's Eq. 6-10, at a learning rate eta of their own.
By default eta is a rate of weights: one moves by eta times its gradient, as in SGD.
With `learning_rate_unit="code"`, Eq. 6-10 as printed, a weight of scale ``s`` moves by
``eta s**2 / 3 * (2**b + 1) / (2**b - 1)`` times its gradient. With scales of least
squares, which shrink with the bits, that is 2.5, 5, 10 and 21 eta sigma**2 at 1, 2, 4
and 8 bits, for Gaussian weights of standard deviation sigma: in a wide layer, far less
than SGD's own 0.1.

Momentum and weight decay are not in the paper's update equations but in its set-up; the
buffer, four bytes a weight on the device, holds gradients (and, in `CompensatedSGD`,
what rounding still owes).
"""

from __future__ import annotations

from typing import Any, Callable

import tensorflow as tf

from tff_fedmpq.keras.quantized_kernel import QuantizedKernel
from tff_fedmpq.lookup import check_name
from tff_fedmpq.quantization.integer_update import (
    integer_update,
    move_codes,
    nearest_power_of_two,
    step_gain,
    stochastic_rounding_update,
)
from tff_fedmpq.quantization.representation import MAX_BIT_WIDTH

CodeUpdate = Callable[
    [tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor
]

CODE_UPDATES: dict[str, CodeUpdate] = {
    "integer": integer_update,
    "stochastic_rounding": stochastic_rounding_update,
}
LEARNING_RATE_UNITS = ("code", "weight")


def check_learning_rate_unit(unit: str) -> None:
    """Raises ValueError unless it is one of `LEARNING_RATE_UNITS`."""
    if unit not in LEARNING_RATE_UNITS:
        raise ValueError(
            f"learning_rate_unit has to be one of {', '.join(LEARNING_RATE_UNITS)}; "
            f"found {unit!r}."
        )


def check_can_compensate(momentum: float) -> None:
    """Raises ValueError for a momentum that has no buffer to take errors in."""
    if not momentum > 0:
        raise ValueError(
            "Compensated rounding needs momentum above 0, whose buffer takes the "
            f"errors in; found momentum {momentum!r}."
        )


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq")
class IntegerSGD(tf.keras.optimizers.Optimizer):
    """SGD that moves integer codes by integer steps (FedMPQ, Eq. 6-10).

    Variables that are no codes of a quantized layer are trained by plain SGD, so the
    optimizer serves a model without quantized layers too.

    Args:
      learning_rate: eta, of quantized kernels, in the unit `learning_rate_unit`.
      float_learning_rate: of every other variable.
      momentum: mu, from 0 (none) to below 1.
      weight_decay: coefficient of the L2 decay that is added to the gradient.
      code_update: name in `CODE_UPDATES`.
      low_bit_damping: d; codes of b bits learn at ``eta 2^(-d (8 - b))``. Steps of
        one unit are 2^(8 - b) times as large as at 8 bits, and so is the variance that
        rounding them at random adds, for the same progress. 0 is the paper's.
      learning_rate_unit: what eta is a rate of: "code" (Eq. 6-10), or "weight", by
        which a weight moves by eta times its gradient, whatever its scale and, without
        damping, its bits; 0.1 is then SGD's usual rate.
      seed: of the stochastic rounding; the same seed gives the same training.
      name: of the optimizer.
      **kwargs: of `tf.keras.optimizers.Optimizer`. Those that clip gradients or average
        weights serve models without quantized layers only: a code's gradient is per
        code unit.
    """

    def __init__(
        self,
        learning_rate: float = 0.1,
        float_learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        code_update: str = "integer",
        low_bit_damping: float = 0.0,
        learning_rate_unit: str = "weight",
        seed: int = 0,
        name: str = "IntegerSGD",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum has to be in [0, 1), found {momentum!r}.")
        check_name(code_update, CODE_UPDATES, "code_update")
        check_learning_rate_unit(learning_rate_unit)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self._float_learning_rate: float | tf.Variable = float_learning_rate
        self.momentum = momentum
        # Not `self.weight_decay`: by that name Keras decays apart from the gradient.
        self.l2_decay = weight_decay or 0.0
        self.code_update = code_update
        self.low_bit_damping = low_bit_damping
        self.learning_rate_unit = learning_rate_unit
        self.seed = seed

    def build(self, var_list: list[tf.Variable]) -> None:
        """Creates the momentum buffers, float32, and the seed of the rounding.

        Raises:
          ValueError: if a variable is neither float32 nor codes, or gradients of codes
            would be clipped or averaged.
        """
        self._check_can_train(var_list)
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        # Not `add_variable_from_reference`: that would make a buffer of codes uint8.
        self.velocities = [
            self.add_variable(variable.shape, tf.float32, name=f"velocity_{i}")
            for i, variable in enumerate(var_list)
        ]
        # Variables, so that one traced step serves every client and round.
        float_rate = tf.constant(self._float_learning_rate, tf.float32)
        self._float_learning_rate = self.add_variable(
            [],
            tf.float32,
            initializer=lambda shape, dtype: float_rate,
            name="float_learning_rate",
        )
        self.rounding_seed = self.add_variable(
            [2],
            tf.int32,
            # Scrambled: steps and variables are added to it, so the draws of
            # neighbouring seeds would be those of the next step or variable.
            initializer=lambda shape, dtype: tf.cast(
                tf.random.split(tf.constant([self.seed, 0]), 1)[0], dtype
            ),
            name="rounding_seed",
        )
        self._built = True

    def _check_can_train(self, var_list: list[tf.Variable]) -> None:
        has_codes = any(hasattr(v, "quantized_kernel") for v in var_list)
        unusable = [
            name
            for name in ("clipnorm", "clipvalue", "global_clipnorm", "use_ema")
            if getattr(self, name)
        ]
        if has_codes and unusable:
            raise ValueError(
                f"{self.name}: {', '.join(unusable)} would act on gradients per code "
                "unit, or on codes; leave it out for a model with quantized layers."
            )
        for variable in var_list:
            if variable.dtype != tf.float32 and not hasattr(
                variable, "quantized_kernel"
            ):
                raise ValueError(
                    f"{self.name} trains codes and float32 variables; found "
                    f"{variable.name} of dtype {variable.dtype.name}. A policy such as "
                    "mixed_bfloat16 computes in less and keeps variables in float32."
                )

    @property
    def float_learning_rate(self) -> float | tf.Variable:
        """Of all that are no codes; a variable once built, and settable as such."""
        return self._float_learning_rate

    @float_learning_rate.setter
    def float_learning_rate(self, value: float | tf.Tensor) -> None:
        if isinstance(self._float_learning_rate, tf.Variable):
            self._float_learning_rate.assign(value)
        else:
            self._float_learning_rate = value

    def reset(self, seed: tf.Tensor) -> None:
        """Forgets all steps, as if freshly built.

        Args:
          seed: int32[2], of the rounding from here on.
        """
        for velocity in self.velocities:
            velocity.assign(tf.zeros_like(velocity))
        self.iterations.assign(0)
        self.rounding_seed.assign(seed)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Moves one variable by its gradient.

        Args:
          gradient: float32, dense, of the variable's shape; of codes, ``dL/du``.
          variable: codes of a quantized kernel, or a float variable.
        """
        kernel = getattr(variable, "quantized_kernel", None)
        index = self._index_dict[self._var_key(variable)]
        gradient = tf.convert_to_tensor(gradient)  # Of embeddings: IndexedSlices.
        if self.l2_decay:
            gradient += self._decay_gradient(variable, kernel)
        velocity = self.momentum * self.velocities[index] + gradient
        self.velocities[index].assign(velocity)
        if kernel is None:
            variable.assign_sub(self.float_learning_rate * velocity)
        else:
            self.move_codes(kernel, velocity, index)

    def _decay_gradient(self, variable: tf.Variable, kernel: QuantizedKernel | None):
        """Returns the gradient of ``decay ||w||^2 / 2`` on the variable."""
        if kernel is None:
            return self.l2_decay * variable
        step, levels = kernel.step_and_levels()
        return (self.l2_decay * tf.square(step)) * levels

    def move_codes(
        self, kernel: QuantizedKernel, velocity: tf.Tensor, index: int
    ) -> None:
        """Moves the codes of a kernel.

        Args:
          kernel: whose codes move.
          velocity: float32, the momentum buffer of ``dL/du``.
          index: the place of the codes among the trainable variables.
        """
        uniform = self._draw_uniform(velocity.shape, index)
        kernel.codes.assign(
            CODE_UPDATES[self.code_update](
                kernel.codes.value(),
                velocity,
                kernel.bit_width.value(),
                self._rate_of_codes(kernel),
                uniform,
            )
        )

    def _draw_uniform(self, shape: tf.TensorShape, index: int) -> tf.Tensor:
        """Returns this step's random numbers of a variable, float32 in [0, 1)."""
        # The generator scrambles its seed, so neighbouring ones are as good as any.
        seed = self.rounding_seed + [tf.cast(self.iterations, tf.int32), index]
        return tf.random.stateless_uniform(shape, seed, alg="philox")

    def _rate_of_codes(self, kernel: QuantizedKernel) -> tf.Tensor:
        """Returns the eta of Eq. 6-10 for a kernel, float32[]."""
        bit_width = kernel.bit_width.value()
        rate = tf.cast(self.learning_rate, tf.float32)
        missing_bits = tf.cast(MAX_BIT_WIDTH - bit_width, tf.float32)
        rate = rate * tf.pow(2.0, -self.low_bit_damping * missing_bits)
        if self.learning_rate_unit == "code":
            return rate
        # Eq. 6-10 move a weight by eta K delta^2 times its gradient.
        moved = step_gain(bit_width) * tf.square(kernel.step_size())
        return tf.math.divide_no_nan(rate, moved)

    def get_config(self) -> dict[str, Any]:
        """Returns the optimizer's arguments."""
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "float_learning_rate": self._serialize_hyperparameter(
                self._float_learning_rate
            ),
            "momentum": self.momentum,
            "weight_decay": self.l2_decay,
            "code_update": self.code_update,
            "low_bit_damping": self.low_bit_damping,
            "learning_rate_unit": self.learning_rate_unit,
            "seed": self.seed,
        }


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq")
class CompensatedSGD(IntegerSGD):
    """Integer steps whose rounding errors go back into the momentum.

    A code that should have moved down by ``t = eta K v`` units moves by a whole number
    of them, ``r``: rounded to a power of two, then stochastically. Left alone these
    errors are a random walk: at few bits, where a unit is large, its noise soon exceeds
    what was learned. Here the momentum buffer takes each error in,

        v <- v + (t - r) (1 - mu) / (mu eta K),

    so that the steps which the momentum still has to make amount to ``t - r`` more. A
    code then stays within about a unit of where unrounded SGD would be, and equals it
    on average. The device stores what it stored before: codes, and one buffer.

    What clipping to the range of the codes takes away is not an error, and is lost; so
    is what the buffer still holds when a client's round ends. An error comes back over
    some 1 / (1 - mu) steps: with little momentum at once, and codes of few bits dither.

    Args:
      learning_rate: eta, as of `IntegerSGD`.
      **kwargs: of `IntegerSGD`; `momentum` above 0, `code_update` is not used.
    """

    def __init__(self, learning_rate: float = 0.1, **kwargs: Any):
        super().__init__(learning_rate, **{"name": "CompensatedSGD", **kwargs})
        check_can_compensate(self.momentum)

    def move_codes(
        self, kernel: QuantizedKernel, velocity: tf.Tensor, index: int
    ) -> None:
        """Moves the codes, and leaves the rounding's error in the momentum buffer."""
        bit_width = kernel.bit_width.value()
        gain = step_gain(bit_width)
        rate = self._rate_of_codes(kernel)
        units = gain * nearest_power_of_two(rate * velocity)
        change = tf.floor(self._draw_uniform(velocity.shape, index) - units)
        kernel.codes.assign(move_codes(kernel.codes.value(), change, bit_width))
        # The buffer points uphill, codes move downhill: an excess `change` adds to it.
        excess = change + gain * rate * velocity
        share = (1.0 - self.momentum) / self.momentum
        per_unit = tf.math.divide_no_nan(share, gain * rate)
        self.velocities[index].assign_add(per_unit * excess)


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq")
class StraightThroughSGD(IntegerSGD):
    """SGD on float master weights of quantized kernels, for comparison.

    The usual quantization-aware training: a float copy of the weights takes the SGD
    step, at `float_learning_rate`, and codes are its nearest levels; gradients pass the
    rounding straight through. It is what FedMPQ does without: the masters cost four
    bytes a weight on the device. They begin, at the first step, as the weights that the
    codes stand for; who changes codes later on has to `reset`. Weight decay is that of
    the codes' weights, as the gradient is.

    Args:
      **kwargs: of `IntegerSGD`; `learning_rate`, its unit, `low_bit_damping` and
        `code_update` are not used.
    """

    def __init__(self, learning_rate: float = 0.1, **kwargs: Any):
        super().__init__(learning_rate, **{"name": "StraightThroughSGD", **kwargs})

    def build(self, var_list: list[tf.Variable]) -> None:
        """Creates the masters too, float32, in code units; None for float variables."""
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
        # A gradient on codes is delta times that on weights, which delta scales again.
        rate = self.float_learning_rate / tf.square(kernel.step_size())
        master.assign(present - rate * velocity)
        codes = kernel.representation.nearest_codes(master, kernel.bit_width)
        kernel.codes.assign(codes)

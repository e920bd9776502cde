"""SGD for quantized models: integer steps for codes, ordinary steps for float weights.

Every trainable variable has a momentum buffer ``v <- mu v + (gradient + decay w)``, of
four bytes per weight; momentum and decay are in the paper's set-up, not its equations.
Float variables (BatchNorm, biases, layers left in float) move by ``-eta_float v``.
Codes move by whole units (FedMPQ, Eq. 6-10) at their own learning rate eta.

With `learning_rate_unit="weight"` a weight moves by eta times its gradient, as in SGD,
whatever its scale and bit-width. With "code" (Eq. 6-10 as printed), a weight of scale
``s`` moves by ``eta s**2 / 3 * (2**b + 1) / (2**b - 1)`` times its gradient. For
Gaussian weights of standard deviation sigma at least-squares scales, that is 2.5, 5, 10
and 21 eta sigma**2 at 1, 2, 4 and 8 bits: in a wide layer far below SGD's usual 0.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tensorflow as tf
from absl import logging

from tff_fedmpq.keras.quantized_kernel import QuantizedKernel
from tff_fedmpq.lookup import check_name
from tff_fedmpq.quantization.code_updates import (
    STEP_ROUNDINGS,
    step_gain,
    traced_integer_update,
)

LEARNING_RATE_UNITS = ("code", "weight")
_Schedule = tf.keras.optimizers.schedules.LearningRateSchedule


def _first_rate(rate: Any) -> tf.Tensor:
    """Returns the rate at the first step, or that after warm-up; float32[]."""
    if isinstance(rate, _Schedule):
        try:
            config = rate.get_config()
        except NotImplementedError:  # Of a schedule that cannot be saved.
            config = {}
        first = config.get("warmup_target") or config.get("initial_learning_rate")
        rate = rate(0) if first is None else first
    return tf.cast(rate, tf.float32)


def are_finite(variables: Iterable[tf.Variable]) -> bool:
    """Returns whether all floating point variables are finite."""
    floats = (v for v in variables if v.dtype.is_floating)
    return all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in floats)


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq")
class IntegerSGD(tf.keras.optimizers.Optimizer):
    """SGD by integer steps for codes (FedMPQ, Eq. 6-10), plain steps for all else.

    Args:
      learning_rate: Learning rate of the kernels (eta), in `learning_rate_unit`; a
        number or a schedule.
      float_learning_rate: Learning rate of all other variables. A number changes in
        proportion when `learning_rate` does, by a schedule or a callback; a schedule
        is followed as it is.
      momentum: Momentum (mu), from 0 (none) to below 1.
      weight_decay: Coefficient of the L2 decay that is added to the gradient.
      learning_rate_unit: "weight" or "code" (module docstring).
      seed: Seed of the stochastic rounding.
      rates_move_together: Whether `float_learning_rate` changes with `learning_rate`.
      step_rounding: Power of two that a step is rounded to (Eq. 6): "nearest", or "up",
        the ceiling that the paper prints.
      **kwargs: Arguments of `tf.keras.optimizers.Optimizer`; those that clip gradients
        or average weights only for models without quantized layers.
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        float_learning_rate: Any = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        learning_rate_unit: str = "weight",
        seed: int = 0,
        rates_move_together: bool = True,
        step_rounding: str = "nearest",
        name: str = "IntegerSGD",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        if isinstance(float_learning_rate, dict):
            deserialize = tf.keras.optimizers.schedules.deserialize
            float_learning_rate = deserialize(float_learning_rate)
        for rate in (learning_rate, float_learning_rate):
            if callable(rate) and not isinstance(rate, _Schedule):
                raise TypeError(
                    f"A learning rate is a number or a schedule of Keras; found {rate}."
                )
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum has to be in [0, 1), found {momentum!r}.")
        if learning_rate_unit not in LEARNING_RATE_UNITS:
            raise ValueError(
                f"learning_rate_unit has to be one of {', '.join(LEARNING_RATE_UNITS)};"
                f" found {learning_rate_unit!r}."
            )
        self._learning_rate = self._build_learning_rate(learning_rate)
        self._float_learning_rate: Any = float_learning_rate
        self._given_rate = learning_rate  # That at which the other one is given.
        self.rates_move_together = rates_move_together
        self.momentum = momentum
        # Not `self.weight_decay`: Keras applies decoupled decay by that attribute.
        self.l2_decay = weight_decay or 0.0
        check_name(step_rounding, STEP_ROUNDINGS, "step_rounding")
        self.learning_rate_unit = learning_rate_unit
        self.step_rounding = step_rounding
        self.seed = seed

    def build(self, var_list: list[tf.Variable]) -> None:
        """Creates the momentum buffers, float32, and the seed of the rounding."""
        options = ("clipnorm", "clipvalue", "global_clipnorm", "use_ema")
        unusable = [name for name in options if getattr(self, name)]
        for variable in var_list:
            is_codes = hasattr(variable, "quantized_kernel")
            if is_codes and unusable:
                raise ValueError(
                    f"{self.name}: {', '.join(unusable)} would act on gradients per "
                    "code unit, or on codes; leave it out for quantized layers."
                )
            if not is_codes and variable.dtype != tf.float32:
                raise ValueError(
                    f"{self.name} trains codes and float32 variables; found "
                    f"{variable.name} of {variable.dtype.name}; use mixed_bfloat16."
                )
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        # Not `add_variable_from_reference`, which would make a buffer of codes uint8.
        self.velocities = [
            self.add_variable(variable.shape, tf.float32, name=f"velocity_{i}")
            for i, variable in enumerate(var_list)
        ]
        # Variables, so that one traced step serves every client and round.
        if not isinstance(self._float_learning_rate, _Schedule):
            float_rate = tf.constant(self._float_learning_rate, tf.float32)
            self._float_learning_rate = self.add_variable(
                [], tf.float32, lambda shape, dtype: float_rate, "float_learning_rate"
            )
        reference = _first_rate(self._given_rate)
        self._reference_rate = self.add_variable(
            [], tf.float32, lambda shape, dtype: reference, "reference_rate"
        )
        # Scrambled, because steps and variable indices are added to the seed:
        # neighbouring seeds would repeat the numbers of another step or variable.
        seed = tf.cast(tf.random.split(tf.constant([self.seed, 0]), 1)[0], tf.int32)
        self.rounding_seed = self.add_variable(
            [2], tf.int32, lambda shape, dtype: seed, "rounding_seed"
        )
        self._built = True

    def _var_key(self, variable: tf.Variable) -> str:
        return str(variable._unique_id)  # See `_KeyOfCodes`.

    @property
    def float_learning_rate(self) -> Any:
        """Learning rate of the float variables, before it moves with the other."""
        return self._float_learning_rate

    @float_learning_rate.setter
    def float_learning_rate(self, value: float | tf.Tensor) -> None:
        if isinstance(self._float_learning_rate, tf.Variable):
            self._float_learning_rate.assign(value)
            self._reference_rate.assign(self.learning_rate)
        else:
            self._float_learning_rate = value
            rate = self._learning_rate  # A variable, which may change until then.
            is_known = isinstance(rate, tf.Variable) and tf.executing_eagerly()
            self._given_rate = rate.numpy() if is_known else rate

    def _rate_of_floats(self) -> tf.Tensor:
        """Returns the present learning rate of the float variables, float32[]."""
        rate = self._float_learning_rate
        if isinstance(rate, _Schedule):
            return tf.cast(rate(self.iterations), tf.float32)
        if not self.rates_move_together:
            return tf.convert_to_tensor(rate)
        now, reference = tf.cast(self.learning_rate, tf.float32), self._reference_rate
        moved = tf.math.divide_no_nan(now, reference)
        return rate * tf.where(tf.equal(now, reference), 1.0, moved)

    def reset(self, seed: tf.Tensor) -> None:
        """Clears momentum and steps, and sets the seed of the rounding, int32[2]."""
        for velocity in self.velocities:
            velocity.assign(tf.zeros_like(velocity))
        self.iterations.assign(0)
        self.rounding_seed.assign(seed)

    def finalize_variable_values(self, var_list: list[tf.Variable]) -> None:
        """Ends a fit of any model; logs an error if it diverged. Keras calls it."""
        super().finalize_variable_values(var_list)
        if not are_finite((*var_list, *getattr(self, "velocities", ()))):
            logging.error(
                "Training diverged: weights or momentum are not finite. With "
                "tff_fedmpq.keras.StopWhereNotFinite() among its callbacks, fit stops "
                "there and the model has its weights of before that epoch."
            )

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Moves codes by their gradient ``dL/du``, or a float variable by its own."""
        kernel: Any = getattr(variable, "quantized_kernel", None)
        index = self._index_dict[self._var_key(variable)]
        gradient = tf.convert_to_tensor(gradient)  # Embeddings give IndexedSlices.
        if self.l2_decay and kernel is None:
            gradient += self.l2_decay * variable
        elif self.l2_decay:
            step, levels = kernel.step_and_levels()
            gradient += (self.l2_decay * tf.square(step)) * levels
        velocity = self.momentum * self.velocities[index] + gradient
        self.velocities[index].assign(velocity)
        if kernel is None:
            variable.assign_sub(self._rate_of_floats() * velocity)
        else:
            self.move_codes(kernel, velocity, index)

    def move_codes(
        self, kernel: QuantizedKernel, velocity: tf.Tensor, index: int
    ) -> None:
        """Moves codes by their momentum buffer; subclasses may override it.

        `velocity`, float32, is of ``dL/du``; `index` numbers the trainable variables.
        """
        uniform = self._draw_uniform(velocity.shape, index)
        rate = self._rate_of_codes(kernel)
        codes, bit_width = kernel.codes.value(), kernel.bit_width.value()
        update = traced_integer_update(
            codes, velocity, bit_width, rate, uniform, self.step_rounding
        )
        kernel.codes.assign(update)

    def _draw_uniform(self, shape: tf.TensorShape, index: int) -> tf.Tensor:
        """Returns this step's random numbers for a variable, float32 in [0, 1)."""
        # The generator scrambles its seed, so that neighbouring seeds are independent.
        seed = self.rounding_seed + [tf.cast(self.iterations, tf.int32), index]
        return tf.random.stateless_uniform(shape, seed, alg="philox")

    def _rate_of_codes(self, kernel: QuantizedKernel) -> tf.Tensor:
        """Returns the eta of Eq. 6-10 for a kernel, float32[]."""
        rate = tf.cast(self.learning_rate, tf.float32)
        if self.learning_rate_unit == "code":
            return rate
        # Eq. 6-10 move a weight by eta K delta^2 times its gradient.
        moved = step_gain(kernel.bit_width.value()) * tf.square(kernel.step_size())
        return tf.math.divide_no_nan(rate, moved)

    def get_config(self) -> dict[str, Any]:
        serialize = self._serialize_hyperparameter
        float_rate = serialize(self._float_learning_rate)
        if isinstance(self._float_learning_rate, tf.Variable):
            float_rate = self._rate_of_floats().numpy()
        return {
            **super().get_config(),
            "learning_rate": serialize(self._learning_rate),
            "float_learning_rate": float_rate,
            "momentum": self.momentum,
            "weight_decay": self.l2_decay,
            "learning_rate_unit": self.learning_rate_unit,
            "step_rounding": self.step_rounding,
            "seed": self.seed,
            "rates_move_together": self.rates_move_together,
        }

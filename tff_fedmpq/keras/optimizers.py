"""SGD for quantized models: integer steps for codes, ordinary steps for float weights.

Every trainable variable has a momentum buffer ``v <- mu v + (gradient + decay w)``.
Float variables (BatchNorm, biases, layers left in float) move by ``-eta_float v``.
Codes move by whole units (FedMPQ, Eq. 6-10) at their own learning rate eta.

With `learning_rate_unit="weight"` a weight moves by eta times its gradient, as in SGD,
whatever its scale and bit-width. With "code" (Eq. 6-10 as printed), a weight of scale
``s`` moves by ``eta s**2 / 3 * (2**b + 1) / (2**b - 1)`` times its gradient. For
Gaussian weights of standard deviation sigma at least-squares scales, that is 2.5, 5, 10
and 21 eta sigma**2 at 1, 2, 4 and 8 bits: far less than SGD's usual 0.1 in a wide
layer.

Momentum and weight decay belong to the paper's set-up, not to its update equations. The
momentum buffer takes four bytes per weight on the device.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tff_fedmpq.keras.quantized_kernel import QuantizedKernel
from tff_fedmpq.quantization.code_updates import integer_update, step_gain

LEARNING_RATE_UNITS = ("code", "weight")


def check_learning_rate_unit(unit: str) -> None:
    """Raises ValueError unless it is one of `LEARNING_RATE_UNITS`."""
    if unit not in LEARNING_RATE_UNITS:
        raise ValueError(
            f"learning_rate_unit has to be one of {', '.join(LEARNING_RATE_UNITS)}; "
            f"found {unit!r}."
        )


@tf.keras.utils.register_keras_serializable(package="tff_fedmpq")
class IntegerSGD(tf.keras.optimizers.Optimizer):
    """SGD that moves integer codes by integer steps (FedMPQ, Eq. 6-10).

    All other variables are trained by plain SGD, so that the optimizer also serves
    models without quantized layers.

    Args:
      learning_rate: Learning rate of the kernels (eta), in `learning_rate_unit`.
      float_learning_rate: Learning rate of all other variables.
      momentum: Momentum (mu), from 0 (none) to below 1.
      weight_decay: Coefficient of the L2 decay that is added to the gradient.
      learning_rate_unit: Unit of the kernels' learning rate, "weight" or "code"
        (module docstring).
      seed: Seed of the stochastic rounding.
      name: Name of the optimizer.
      **kwargs: Arguments of `tf.keras.optimizers.Optimizer`; those that clip gradients
        or average weights only for models without quantized layers.

    Raises:
      ValueError: If momentum or unit is out of range.
    """

    def __init__(
        self,
        learning_rate: float = 0.1,
        float_learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        learning_rate_unit: str = "weight",
        seed: int = 0,
        name: str = "IntegerSGD",
        **kwargs: Any,
    ):
        super().__init__(name=name, **kwargs)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum has to be in [0, 1), found {momentum!r}.")
        check_learning_rate_unit(learning_rate_unit)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self._float_learning_rate: float | tf.Variable = float_learning_rate
        self.momentum = momentum
        # Not `self.weight_decay`: Keras applies decoupled decay by that attribute.
        self.l2_decay = weight_decay or 0.0
        self.learning_rate_unit = learning_rate_unit
        self.seed = seed

    def build(self, var_list: list[tf.Variable]) -> None:
        """Creates the momentum buffers, float32, and the seed of the rounding.

        Raises:
          ValueError: If a variable is neither float32 nor codes, or gradients of codes
            would be clipped or averaged.
        """
        self._check_can_train(var_list)
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        # Not `add_variable_from_reference`, which would make a buffer of codes uint8.
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
            # Scrambled, because steps and variable indices are added to the seed:
            # neighbouring seeds would repeat the numbers of another step or variable.
            initializer=lambda shape, dtype: tf.cast(
                tf.random.split(tf.constant([self.seed, 0]), 1)[0], dtype
            ),
            name="rounding_seed",
        )
        self._built = True

    def _check_can_train(self, var_list: list[tf.Variable]) -> None:
        has_codes = any(hasattr(v, "quantized_kernel") for v in var_list)
        options = ("clipnorm", "clipvalue", "global_clipnorm", "use_ema")
        unusable = [name for name in options if getattr(self, name)]
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
                    "mixed_bfloat16 keeps variables in float32."
                )

    @property
    def float_learning_rate(self) -> float | tf.Variable:
        """Learning rate of the float variables; a variable once built."""
        return self._float_learning_rate

    @float_learning_rate.setter
    def float_learning_rate(self, value: float | tf.Tensor) -> None:
        if isinstance(self._float_learning_rate, tf.Variable):
            self._float_learning_rate.assign(value)
        else:
            self._float_learning_rate = value

    def reset(self, seed: tf.Tensor) -> None:
        """Clears momentum and step counter, and sets the seed of the rounding.

        Args:
          seed: New seed, int32[2].
        """
        for velocity in self.velocities:
            velocity.assign(tf.zeros_like(velocity))
        self.iterations.assign(0)
        self.rounding_seed.assign(seed)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Moves one variable by its gradient.

        Args:
          gradient: Gradient, float32 of the variable's shape; ``dL/du`` for codes.
          variable: Codes of a quantized kernel, or a float variable.
        """
        kernel = getattr(variable, "quantized_kernel", None)
        index = self._index_dict[self._var_key(variable)]
        gradient = tf.convert_to_tensor(gradient)  # Embeddings give IndexedSlices.
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
        """Moves the codes of a kernel; subclasses may override it.

        Args:
          kernel: Kernel whose codes move.
          velocity: Momentum buffer of ``dL/du``, float32.
          index: Index of the codes among the trainable variables.
        """
        uniform = self._draw_uniform(velocity.shape, index)
        kernel.codes.assign(
            integer_update(
                kernel.codes.value(),
                velocity,
                kernel.bit_width.value(),
                self._rate_of_codes(kernel),
                uniform,
            )
        )

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
        """Returns the optimizer's arguments."""
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "float_learning_rate": self._serialize_hyperparameter(
                self._float_learning_rate
            ),
            "momentum": self.momentum,
            "weight_decay": self.l2_decay,
            "learning_rate_unit": self.learning_rate_unit,
            "seed": self.seed,
        }

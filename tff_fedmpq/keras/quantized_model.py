"""Class of quantized models, which refuses what cannot train them, and diverging."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tff_fedmpq.keras.layers import check_codes, check_strategy
from tff_fedmpq.keras.optimizers import IntegerSGD, are_finite
from tff_fedmpq.keras.quantized_kernel import OptimizerError


class StopWhereNotFinite(tf.keras.callbacks.Callback):
    """Ends a fit whose loss, weights or momentum are not finite.

    They become what they were before that epoch, which is named. Codes show no
    divergence: they stay in their range. Every fit of what `quantize_model` returns has
    this callback; other models take it.
    """

    def on_train_begin(self, logs: Any = None) -> None:
        self._keep()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        loss = (logs or {}).get("loss", 0.0)
        # Momentum keeps what activations such as ReLU hide from the loss.
        if np.isfinite(loss) and are_finite(self._variables()):
            self._keep()
            return
        logging.error(
            "Training diverged in epoch %d: the loss is %s. The model has its weights "
            "of before that epoch.",
            epoch + 1,
            loss,
        )
        for variable in self._variables():
            kept = self._kept.get(variable.ref())
            variable.assign(tf.zeros_like(variable) if kept is None else kept)
        self.model.stop_training = True

    def _variables(self) -> list[tf.Variable]:
        return [*self.model.weights, *self.model.optimizer.variables]

    def _keep(self) -> None:
        self._kept = {v.ref(): v.numpy() for v in self._variables()}


def _check_checkpoint(model: Any, path: str) -> None:
    """Raises ValueError for a checkpoint without codes, of which biases would fit."""
    has_codes = any(hasattr(v, "quantized_kernel") for v in model.weights)
    if has_codes and tf.io.gfile.exists(f"{path}.index"):
        dtypes = tf.train.load_checkpoint(path).get_variable_to_dtype_map()
        if tf.uint8 not in dtypes.values():
            raise ValueError("it holds no codes.")


def refusing_optimizers(base: Any) -> type:
    """Returns the class of a quantized model, which refuses Keras's own optimizers."""
    if hasattr(base, "refuses_optimizers"):
        return base

    def compile(self, optimizer="rmsprop", *args, **kwargs):  # noqa: A001
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        has_codes = any(hasattr(v, "quantized_kernel") for v in self.weights)
        if has_codes and not isinstance(inner, IntegerSGD):
            name = inner if isinstance(inner, str) else type(inner).__name__
            raise OptimizerError(name)
        if has_codes:
            check_strategy(self.name)
        return base.compile(self, optimizer, *args, **kwargs)

    def fit(self, *args, **kwargs):
        bound = inspect.signature(base.fit).bind(self, *args, **kwargs)
        others = bound.arguments.get("callbacks") or []
        guard = StopWhereNotFinite()
        if isinstance(others, tf.keras.callbacks.CallbackList):
            others.append(guard)
            guard.set_model(self)
        else:
            # First, so that others find weights that are finite.
            bound.arguments["callbacks"] = [guard, *tf.nest.flatten(others)]
        return base.fit(*bound.args, **bound.kwargs)

    def load_weights(self, filepath, *args, **kwargs):
        try:
            _check_checkpoint(self, str(filepath))
            return base.load_weights(self, filepath, *args, **kwargs)
        except ValueError as error:
            raise ValueError(
                f"{filepath} does not fit {self.name}; weights of a float model are "
                f"set by load_float_weights: {error}"
            ) from None

    def set_weights(self, weights):
        check_codes(self.weights, weights)
        base.set_weights(self, weights)

    attributes = {
        "compile": compile,
        "fit": fit,
        "load_weights": load_weights,
        "set_weights": set_weights,
        "refuses_optimizers": True,
        "__doc__": base.__doc__,
        "__module__": base.__module__,  # Keras saves it as its own class.
    }
    return type(base.__name__, (base,), attributes)

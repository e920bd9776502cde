"""Class of quantized models, which refuses what cannot train them, and diverging."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tff_fedmpq.keras.layers import check_codes, check_strategy
from tff_fedmpq.keras.optimizers import IntegerSGD
from tff_fedmpq.keras.quantized_kernel import OptimizerError


class StopWhereNotFinite(tf.keras.callbacks.Callback):
    """Ends a fit whose loss, weights or momentum are not finite.

    They become what they were before that epoch, which is named. Codes show no
    divergence: they stay in their range. Every fit of a quantized model has this
    callback.
    """

    def on_train_begin(self, logs: Any = None) -> None:
        self._keep()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if np.isfinite(loss) and self._is_finite():
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

    def _is_finite(self) -> bool:
        # Momentum keeps what activations such as ReLU hide from the loss.
        floats = (v for v in self._variables() if v.dtype.is_floating)
        return all(bool(tf.reduce_all(tf.math.is_finite(v))) for v in floats)


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
        else:
            # First, so that others find weights that are finite.
            bound.arguments["callbacks"] = [guard, *tf.nest.flatten(others)]
        return base.fit(*bound.args, **bound.kwargs)

    def set_weights(self, weights):
        check_codes(self.weights, weights)
        base.set_weights(self, weights)

    attributes = {
        "compile": compile,
        "fit": fit,
        "set_weights": set_weights,
        "refuses_optimizers": True,
        "__doc__": base.__doc__,
        "__module__": base.__module__,  # Keras saves it as its own class.
    }
    return type(base.__name__, (base,), attributes)

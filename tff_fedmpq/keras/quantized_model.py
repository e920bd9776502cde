"""Class of quantized models, which refuses what cannot train them."""

from __future__ import annotations

from typing import Any

from tff_fedmpq.keras.layers import check_codes, check_strategy
from tff_fedmpq.keras.optimizers import IntegerSGD


def refusing_optimizers(base: Any) -> type:
    """Returns the class of a quantized model, which refuses Keras's own optimizers."""
    if hasattr(base, "refuses_optimizers"):
        return base

    def compile(self, optimizer="rmsprop", *args, **kwargs):  # noqa: A001
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        has_codes = any(hasattr(v, "quantized_kernel") for v in self.weights)
        if has_codes and not isinstance(inner, IntegerSGD):
            name = inner if isinstance(inner, str) else type(inner).__name__
            raise ValueError(
                f"{name} cannot train integer codes: compile quantized models with "
                "tff_fedmpq.IntegerSGD, for its float weights too."
            )
        if has_codes:
            check_strategy(self.name)
        return base.compile(self, optimizer, *args, **kwargs)

    def set_weights(self, weights):
        check_codes(self.weights, weights)
        base.set_weights(self, weights)

    attributes = {
        "compile": compile,
        "set_weights": set_weights,
        "refuses_optimizers": True,
        "__doc__": base.__doc__,
        "__module__": base.__module__,  # Keras saves it as its own class.
    }
    return type(base.__name__, (base,), attributes)

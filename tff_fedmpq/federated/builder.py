"""Builders of learning processes by scheme, such as `build_fedmpq`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from tff_fedmpq.federated.config import LocalTrainingConfig

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_federated as tff

    from tff_fedmpq.federated.learning_process import FederatedProcess

Config = TypeVar("Config", bound=LocalTrainingConfig)


def builder(config_type: type[Config]) -> Callable[..., FederatedProcess]:
    """Returns `build_process` with a scheme's configuration as the default."""
    default = config_type()

    def build(
        model_fn: Callable[[], tf.keras.Model],
        budgets: Mapping[Any, float | str],
        client_data: tff.simulation.datasets.ClientData,
        config: Config = default,
        *,
        loss: Any = None,
        metrics: Any = None,
        metrics_per_client: bool = False,
        augment: Callable[..., Any] | None = None,
        dtype_policy: str | None = None,
        on_step: Callable[..., Any] | None = None,
        aggregator: Any = None,
        server_optimizer_fn: tff.learning.optimizers.Optimizer | None = None,
        seed: int = 0,
    ) -> FederatedProcess:
        # Settings are read without TensorFlow, which this import brings.
        from tff_fedmpq.federated.process import build_process

        return build_process(
            model_fn,
            budgets,
            client_data,
            config,
            loss=loss,
            metrics=metrics,
            metrics_per_client=metrics_per_client,
            augment=augment,
            dtype_policy=dtype_policy,
            on_step=on_step,
            aggregator=aggregator,
            server_optimizer_fn=server_optimizer_fn,
            seed=seed,
        )

    build.__name__ = build.__qualname__ = f"build_{config_type.name}"
    build.__module__ = config_type.__module__
    build.__doc__ = (
        f"Builds the learning process of a `{config_type.__name__}`; the arguments are "
        "those of `tff_fedmpq.build_process`."
    )
    return build

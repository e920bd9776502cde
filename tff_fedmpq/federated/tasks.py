"""Tasks: structure of examples, loss and metrics, as Keras's `compile` has them.

Labels and outputs meet in the containers that `Model.fit` uses. These bring them to one
rank and type, apply masks and sample weights, serve several outputs, and resolve names
such as "accuracy". Keras exports neither container, and TFF pins the Keras they are of.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable

import tensorflow as tf

from tff_fedmpq._tensorflow import keras_module

compile_utils = keras_module("engine.compile_utils")
Loss = Callable[..., tf.Tensor]

# Accuracy of a class that is predicted, by the loss that trains it.
_ACCURACIES = {
    tf.keras.losses.sparse_categorical_crossentropy: "SparseCategoricalAccuracy",
    tf.keras.losses.categorical_crossentropy: "CategoricalAccuracy",
}
_BY_SHAPE = ("accuracy", "acc", "crossentropy", "ce")  # Keras looks at the outputs.
_RESERVED = ("loss", "num_examples")  # Names beside those of metrics.


def split_example(element: Any) -> tuple[Any, Any, Any]:
    """Returns features x, labels y, and the sample weight or None, of an example.

    An example, or its spec, is (x, y), (x, y, sample_weight), or a mapping of these
    names; x and y are any structures of tensors. ValueError for anything else.
    """
    names = ("x", "y", "sample_weight")
    no_tensors = tf.RaggedTensorSpec, tf.SparseTensorSpec
    if any(isinstance(part, no_tensors) for part in tf.nest.flatten(element)):
        raise ValueError(
            f"Client data has to hold dense tensors of one shape, found {element}; pad "
            "ragged ones by `client_data.preprocess`, with `to_tensor(shape=...)`."
        )
    if isinstance(element, tuple) and len(element) in (2, 3):
        return (*element, None)[:3]
    if isinstance(element, Mapping) and set(element) in ({*names}, {*names[:2]}):
        return element["x"], element["y"], element.get("sample_weight")
    raise ValueError(
        "Client data has to hold pairs (x, y), triples (x, y, sample_weight), or "
        f"mappings of these names; found {element}. Mend it by "
        "`client_data.preprocess(lambda d: d.map(...))`."
    )


class Metrics:
    """Keras metrics of a model's outputs; the variables are sums over examples.

    Variables are created by the constructor, outside of any `tf.function`. `outputs`
    and `labels` are specs of one example's, `names` those of the outputs.
    """

    def __init__(
        self,
        metrics: Any = (),
        names: Sequence[str] = ("output",),
        outputs: Any = None,
        labels: Any = None,
    ) -> None:
        copies = tf.nest.map_structure(_copy_metric, metrics or None)
        self._container = compile_utils.MetricsContainer(
            copies, output_names=list(names)
        )
        if metrics:  # Some take their shapes from the first batch.
            self.update(_zeros(labels), _zeros(outputs), None)
        for metric in self._container.metrics:
            if metric.name in _RESERVED:
                raise ValueError(f"A metric cannot have the name {metric.name!r}.")

    def update(self, labels: Any, outputs: Any, sample_weight: Any) -> None:
        """Adds a batch."""
        self._container.update_state(labels, outputs, sample_weight)

    def reset(self) -> None:
        """Forgets all batches."""
        for metric in self._container.metrics:  # Some reset themselves in a session.
            for variable in metric.variables:
                variable.assign(tf.zeros_like(variable))

    def values(self) -> tuple[tuple[tf.Tensor, ...], ...]:
        """Returns the variables of each metric."""
        return self._map(lambda variable: variable.read_value())

    def zeros(self) -> tuple[tuple[tf.Tensor, ...], ...]:
        """Returns `values` without a batch."""
        return self._map(lambda variable: tf.zeros(variable.shape, variable.dtype))

    def _map(self, function: Callable[[tf.Variable], tf.Tensor]) -> Any:
        metrics = self._container.metrics
        return tuple(tuple(map(function, metric.variables)) for metric in metrics)

    def results(self, values: Sequence[Sequence[tf.Tensor]]) -> Mapping[str, tf.Tensor]:
        """Returns the results by name of `values`, which may be sums over clients."""

        # A function, as only there results are read after variables are assigned.
        @tf.function(autograph=False)
        def compute() -> Mapping[str, tf.Tensor]:
            results = collections.OrderedDict()
            for metric, of_metric in zip(self._container.metrics, values):
                for variable, value in zip(metric.variables, of_metric):
                    variable.assign(value)
                result = metric.result()
                many = result if isinstance(result, dict) else {metric.name: result}
                results.update(many)
            return results

        return compute()

    def results_of_rows(
        self, values: Sequence[Sequence[tf.Tensor]]
    ) -> Mapping[str, tf.Tensor]:
        """Returns the results by name, [N, ...], of N rows of `values`."""
        if not tf.nest.flatten(values):
            return {}
        like = self.results(self.values())

        # A function and one row at a time, as the rows share variables.
        @tf.function(autograph=False)
        def compute() -> Mapping[str, tf.Tensor]:
            specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, like)
            return tf.map_fn(self.results, values, 1, fn_output_signature=specs)

        return compute()


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What clients' models are trained on; fields are as in `tf.keras.Model.compile`.

    Attributes:
      loss: Loss, or structure of losses.
      metrics: Metrics, or structure of metrics.
      names: Names of the model's outputs.
      outputs: Specs of the outputs for one example.
      labels: Specs of its labels.
    """

    loss: Any
    metrics: Any
    names: Sequence[str]
    outputs: Any
    labels: Any

    @classmethod
    def of(
        cls, model: tf.keras.Model, element: Any, loss: Any = None, metrics: Any = None
    ) -> Task:
        """Returns the task of a model on examples of the spec `element`.

        By default the loss is that of classification by logits, and the metric is the
        accuracy where the loss is of one class among several, else there is none.
        ValueError if the examples fit neither the model, nor the loss, nor the metrics.
        """
        loss, metrics = check_loss(loss), check_metrics(metrics)
        x, y, _ = split_example(element)
        outputs = tf.nest.map_structure(
            lambda tensor: tf.TensorSpec(tensor.shape[1:], tensor.dtype), model.output
        )
        if metrics is None:
            accuracy = _ACCURACIES.get(_function_of(loss))
            metrics = (
                []
                if accuracy is None or tf.nest.is_nested(outputs)
                else [getattr(tf.keras.metrics, accuracy)(name="accuracy")]
            )
        task = cls(loss, metrics, model.output_names, outputs, y)
        _check_features(model, x)
        found = f"labels {_describe(y)} and outputs {_describe(outputs)}"
        with _one_sentence(f"The loss does not fit {found}"):
            task.build_loss()(_zeros(y), _zeros(outputs))
        with _one_sentence(f"The metrics do not fit {found}"):
            task.build_metrics()
        return task

    def build_loss(self) -> Loss:
        """Returns the loss, (labels, outputs, sample_weight=None) -> a tensor.

        That has one entry, or as many as examples where nothing reduces them. Variables
        are created, as by `build_metrics`.
        """
        return build_loss(self.loss, self.names, self.outputs)

    def build_metrics(self) -> Metrics:
        """Returns the metrics, with variables of their own."""
        return Metrics(self.metrics, self.names, self.outputs, self.labels)

    @property
    def num_classes(self) -> int | None:
        """Number of classes if labels are class numbers, all of which count."""
        is_sparse = _ACCURACIES.get(_function_of(self.loss), "").startswith("Sparse")
        config = self.loss.get_config() if hasattr(self.loss, "get_config") else {}
        if not is_sparse or config.get("ignore_class") is not None:
            return None
        return self.outputs.shape[-1]


def build_loss(loss: Any, names: Sequence[str], outputs: Any) -> Loss:
    """Returns a loss of outputs of some structure; see `Task.build_loss`."""
    container = compile_utils.LossesContainer(loss, output_names=list(names))
    container.build(outputs)
    return container


def check_loss(loss: Any) -> Any:
    """Returns a loss, or a structure, with instances in place of classes.

    None is that of classification by logits. TypeError or ValueError for what Keras
    does not know.
    """
    if loss is None:
        return tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    known = tf.keras.losses
    return tf.nest.map_structure(lambda x: _check(x, known.get, known.Loss), loss)


def check_metrics(metrics: Any) -> Any:
    """Returns metrics as `check_loss` returns a loss; None stays None."""
    known = tf.keras.metrics
    return tf.nest.map_structure(lambda x: _check(x, known.get, known.Metric), metrics)


def _check(identifier: Any, get: Callable[[str], Any], base: type) -> Any:
    what = base.__name__.lower()
    if isinstance(identifier, type) and issubclass(identifier, base):
        return identifier()
    if isinstance(identifier, str):
        if identifier.lower() not in _BY_SHAPE or base is not tf.keras.metrics.Metric:
            with _one_sentence(f"Keras has no {what} {identifier!r}"):
                if isinstance(get(identifier), str):  # Unknown to Keras, and kept.
                    raise ValueError("the name is unknown")
    elif identifier is not None and not callable(identifier):
        raise TypeError(
            f"A {what} is a Keras name, class or instance, or a function; found "
            f"{identifier!r}."
        )
    return identifier


def _check_features(model: tf.keras.Model, x: Any) -> None:
    """Raises ValueError if the model does not take features of these specs."""
    specs, inputs = tf.nest.flatten(x), model.inputs
    if len(specs) == len(inputs) and all(
        spec.shape.rank == tensor.shape.rank and spec.shape[:1] == [None]
        for spec, tensor in zip(specs, inputs)
    ):
        raise ValueError(
            f"Client data has to hold examples, not batches; found {_describe(x)}. "
            "Mend it by `client_data.preprocess(lambda d: d.unbatch())`."
        )
    if all(spec.shape.is_fully_defined() for spec in specs):
        with _one_sentence(f"The model does not take features {_describe(x)}"):
            model(_zeros(x), training=False)


@contextlib.contextmanager
def _one_sentence(problem: str) -> Iterator[None]:
    """Turns whatever is raised into a ValueError of one line."""
    try:
        yield
    except Exception as error:  # Of Keras, TensorFlow or the user's function.
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(f"{problem}: {reason}") from error


def _function_of(loss: Any) -> Any:
    """Returns the function of a loss, whose hash tells which it is."""
    if tf.nest.is_nested(loss):
        return None
    loss = tf.keras.losses.get(loss)
    return getattr(loss, "fn", loss)


def _copy_metric(metric: Any) -> Any:
    """Copies a metric, whose variables belong to the graph that it was made in."""
    is_metric = isinstance(metric, tf.keras.metrics.Metric)
    return type(metric).from_config(metric.get_config()) if is_metric else metric


def _zeros(specs: Any) -> Any:
    """Returns a batch of one example, of zeros; unknown dimensions are 1."""
    return tf.nest.map_structure(
        lambda spec: tf.zeros([1, *(n or 1 for n in spec.shape)], spec.dtype), specs
    )


def _describe(specs: Any) -> str:
    """Returns the shapes and types of specs as a text of one line."""
    text = lambda s: f"{s.dtype.name}{s.shape.as_list()}"  # noqa: E731
    return str(tf.nest.map_structure(text, specs)).replace("'", "")

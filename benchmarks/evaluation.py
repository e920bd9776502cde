"""Evaluation of the global model: our `Evaluator` against Keras's `Model.evaluate`.

Both compute accuracy and mean loss of FedMPQ's global model (float weights, quantized
activations) on CIFAR-10's test images. Keras is compiled with the same loss and metric
and may choose the best of three batch sizes; ours has the one of an experiment. The
model and its weights are the same, and so are the results, which is checked.
"""

from __future__ import annotations

from typing import Callable

import numpy as np
import tensorflow as tf

from benchmarks import measure
from tff_fedmpq.federated.evaluation import Evaluation, Evaluator
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.simulation import data as datasets
from tff_fedmpq.simulation.models import MODEL_DEPTHS, build_model_fn

_KERAS_BATCH_SIZES = (100, 500, 1000)


def build_candidates(
    model_name: str, num_images: int
) -> dict[str, Callable[[], Evaluation]]:
    """Returns the ways of evaluating one model on the first test images."""
    dataset = datasets.load("cifar10", None)
    images = dataset.test_images[:num_images]
    labels = dataset.test_labels[:num_images]
    model = (
        FedMPQConfig()
        .compose()
        .build_global_model(build_model_fn(model_name, dataset, 0)())
    )
    model.compile(
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )

    def keras_with(batch_size: int) -> Callable[[], Evaluation]:
        def evaluate() -> Evaluation:
            loss, accuracy = model.evaluate(images, labels, batch_size, verbose=0)
            return Evaluation(accuracy, loss)

        return evaluate

    keras = {f"keras_{size}": keras_with(size) for size in _KERAS_BATCH_SIZES}
    return {"evaluator": Evaluator(model, images, labels).evaluate, **keras}


def check_agreement(candidates: dict[str, Callable[[], Evaluation]]) -> None:
    """Raises an error unless all candidates give the same accuracy and loss."""
    results = {name: evaluate() for name, evaluate in candidates.items()}
    for name, result in results.items():
        np.testing.assert_allclose(
            result, results["evaluator"], rtol=1e-4, err_msg=name
        )


def main() -> None:
    """Runs the benchmark."""
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--model", default="resnet20", choices=list(MODEL_DEPTHS))
    parser.add_argument("--images", type=int, default=10_000, help="test images")
    parser.add_argument("--repeats", type=int, default=9, help="at least 5")
    args = parser.parse_args()
    before = measure.environment()
    candidates = build_candidates(args.model, args.images)
    check_agreement(candidates)
    timings = measure.time_alternately(candidates, repeats=args.repeats, warmup=1)
    best = min((name for name in candidates if name != "evaluator"), key=timings.median)
    ratio = timings.ratio("evaluator", best)
    bars = [measure.bar(f"evaluator's time / {best}'s", ratio, at_most=1.0)]
    rows = [
        {**row, "images_per_s": 1e3 * args.images / row["ms"]}
        for row in timings.rows(best)
    ]
    measure.save(
        "evaluation",
        rows,
        bars,
        before,
        output=args.output,
        model=args.model,
        images=args.images,
        ratios_to=best,
    )


if __name__ == "__main__":
    main()

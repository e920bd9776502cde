"""Whether computing in bfloat16 costs accuracy: loss curves of both, three seeds.

    uv run python -m benchmarks.training_curves

One FedMPQ client of uniform 4 bits trains ResNet-20 on all of CIFAR-10, with
augmentation, Lasso and pruning, for 3 epochs (2,346 steps), in float32 and in bfloat16
from the same initial weights and with the same batches. Compared are the training loss,
smoothed, and the accuracy on the test images. The bar: over the seeds, the paired
difference of the mean loss of the last 500 steps is below twice its standard error, or
bfloat16 is the better one.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from benchmarks import measure
from tff_fedmpq.federated.evaluation import Evaluator
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.federated.local_training import LocalTrainer
from tff_fedmpq.federated.messages import assign_quantized_weights, quantize_weights
from tff_fedmpq.keras.variables import ModelSpec
from tff_fedmpq.simulation import data as datasets
from tff_fedmpq.simulation.compute import DTYPE_POLICIES
from tff_fedmpq.simulation.data.augmentation import random_crop_and_flip
from tff_fedmpq.simulation.models import build_model_fn

BITS = 4
BATCH_SIZE = 64
LAST_STEPS = 500
SMOOTHED_OVER = 50


def train(data: datasets.ImageDataset, compute: str, seed: int, epochs: int):
    """Trains one client; returns the loss of every step and the test accuracy."""
    scheme = FedMPQConfig(epochs=epochs, batch_size=BATCH_SIZE).compose()
    model_fn = build_model_fn("resnet20", data, seed)
    losses = tf.Variable(tf.zeros([epochs * -(-len(data.train_labels) // BATCH_SIZE)]))
    done = tf.Variable(0)

    def record(loss: tf.Tensor) -> None:
        losses.scatter_nd_update([[done]], [loss])
        done.assign_add(1)

    model = scheme.build_client_model(model_fn(), DTYPE_POLICIES[compute])
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = LocalTrainer(
        model,
        scheme.training,
        loss,
        pruning=scheme.pruning,
        augment=random_crop_and_flip,
        on_step=record,
    )
    trained, _, _ = trainer.train(
        initial_weights(scheme, model_fn()),
        tf.constant(data.train_images),
        tf.constant(data.train_labels),
        tf.constant([seed, 0]),
    )
    evaluated_model = scheme.build_client_model(model_fn())
    assign_quantized_weights(evaluated_model, trained)
    evaluator = Evaluator(evaluated_model, data.test_images, data.test_labels)
    return losses.numpy(), evaluator.evaluate().accuracy


def initial_weights(scheme, model):
    """Returns the global model before the first round, at uniform bits."""
    spec = ModelSpec.from_model(scheme.build_client_model(model))
    return quantize_weights(
        spec.weights_of(scheme.build_global_model(model)),
        tf.fill([len(spec.kernel_shapes)], BITS),
        scheme.weights.representation,
        scheme.weights.scale_rule,
    )


def plot(curves: dict[str, list[np.ndarray]], path) -> None:
    """Draws all smoothed curves."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (compute, runs), color in zip(curves.items(), ("tab:blue", "tab:orange")):
        for run in runs:
            steps = SMOOTHED_OVER * (1 + np.arange(len(run)))
            label = compute if run is runs[0] else None
            axes.plot(steps, run, color=color, alpha=0.7, lw=1, label=label)
    axes.set(xlabel="step", ylabel=f"training loss, mean of {SMOOTHED_OVER} steps")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def smoothed(losses: np.ndarray) -> np.ndarray:
    """Returns means over `SMOOTHED_OVER` steps, the rest left out."""
    whole = len(losses) // SMOOTHED_OVER * SMOOTHED_OVER
    return losses[:whole].reshape(-1, SMOOTHED_OVER).mean(axis=1)


def main() -> None:
    """Trains with every seed in both precisions."""
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--epochs", type=int, default=3, help="over all images")
    options = parser.parse_args()
    before = measure.environment()
    data = datasets.load("cifar10")
    rows, curves, last = [], {name: [] for name in DTYPE_POLICIES}, {}
    for seed in range(options.seeds):
        for compute in DTYPE_POLICIES:
            losses, accuracy = train(data, compute, seed, options.epochs)
            curves[compute].append(smoothed(losses))
            last[compute, seed] = float(losses[-LAST_STEPS:].mean())
            row = {"seed": seed, "compute": compute, "steps": len(losses)}
            row["last_loss"] = last[compute, seed]
            row["test_accuracy"] = 100 * accuracy
            rows.append(row)
            print(row, flush=True)
    differences = np.array(
        [last["bfloat16", s] - last["float32", s] for s in range(options.seeds)]
    )
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    what = f"bfloat16 loss - float32 loss, last {LAST_STEPS} steps, mean over seeds"
    bars = [measure.bar(what, float(differences.mean()), at_most=float(2 * error))]
    path = measure.save(
        "training_curves",
        rows,
        bars,
        before,
        output=options.output,
        differences=differences.tolist(),
        curves={name: [c.tolist() for c in runs] for name, runs in curves.items()},
    )
    plot(curves, path.with_suffix(".png"))


if __name__ == "__main__":
    main()

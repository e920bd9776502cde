"""A FedMPQ client's training step against others of the same network.

    uv run python -m benchmarks.local_step

One step: forward, backward and update of ResNet-20 on a batch of 64 images, held in
memory. The baseline is Keras as it comes: float32, its SGD with momentum and weight
decay, in a `tf.function`. Beside FedMPQ's step, in float32 and bfloat16, run

* the same with the paper's Lasso, and with float activations;
* the network's convolutions alone, the floor of any float32 step;
* plain Keras in mixed bfloat16: what any bf16 step of this network costs at least;
* quantization-aware training by `tensorflow-model-optimization` (8 bits);
* QKeras (4-bit weights and activations), where it is installed;
* a step on float variables per bit plane, as BSQ keeps them (`bit_plane_layers`).
"""

from __future__ import annotations

import dataclasses
from typing import Callable

import numpy as np
import tensorflow as tf

from benchmarks import bit_plane_layers, measure
from benchmarks.training_curves import initial_weights
from tff_fedmpq.federated.fedmpq import FedMPQConfig
from tff_fedmpq.federated.local_training import LocalTrainer
from tff_fedmpq.federated.messages import assign_quantized_weights
from tff_fedmpq.federated.scheme import Scheme
from tff_fedmpq.keras.resnets import resnet20
from tff_fedmpq.simulation import data as datasets

BATCH_SIZE = 64
# Memory that is new to the process makes the first steps slower.
WARMUP_STEPS = 25
BF16 = "mixed_bfloat16"
LOSS = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)

Step = Callable[[], object]


def keras_step(model: tf.keras.Model, images: tf.Tensor, labels: tf.Tensor) -> Step:
    """Returns a step of Keras's own SGD on any Keras model."""
    optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=5e-4)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            losses = [LOSS(labels, model(images, training=True)), *model.losses]
            loss = tf.add_n(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    return lambda: step().numpy()


def convolutions(model: tf.keras.Model) -> Step:
    """Returns what no float32 step of a network can do without: its convolutions.

    Each computes its output, and the gradients of its input (but that of the images,
    which has none) and of its kernel.
    """
    layers = [x for x in model.layers if isinstance(x, tf.keras.layers.Conv2D)]
    inputs = [tf.random.normal([BATCH_SIZE, *x.input_shape[1:]]) for x in layers]
    outputs = [tf.random.normal([BATCH_SIZE, *x.output_shape[1:]]) for x in layers]

    @tf.function
    def step():
        found = []
        for layer, x, upstream in zip(layers, inputs, outputs):
            options = {"strides": [1, *layer.strides, 1], "padding": "SAME"}
            kernel = layer.kernel.value()
            found += [
                tf.raw_ops.Conv2D(input=x, filter=kernel, **options),
                tf.raw_ops.Conv2DBackpropFilter(
                    input=x,
                    filter_sizes=kernel.shape,
                    out_backprop=upstream,
                    **options,
                ),
            ]
            if layer is not layers[0]:
                found.append(
                    tf.raw_ops.Conv2DBackpropInput(
                        input_sizes=x.shape,
                        filter=kernel,
                        out_backprop=upstream,
                        **options,
                    )
                )
        return found

    return lambda: step()[-1].numpy()


def client_step(
    scheme: Scheme, policy: str | None, images: tf.Tensor, labels: tf.Tensor
) -> Step:
    """Returns the step that a client of a scheme takes."""
    float_model = resnet20(seed=0)
    model = scheme.build_client_model(float_model, policy)
    assign_quantized_weights(model, initial_weights(scheme, float_model))
    trainer = LocalTrainer(model, scheme.training, LOSS)
    step = tf.function(trainer.step)
    return lambda: step(images, labels).loss.numpy()


def keras_bfloat16_model() -> tf.keras.Model:
    """Returns the network under Keras's global policy, as users set it."""
    tf.keras.mixed_precision.set_global_policy(BF16)
    try:
        return resnet20(seed=0)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


def tfmot_model() -> tf.keras.Model:
    """Returns the network under the default 8-bit QAT of TensorFlow's own toolkit."""
    import tensorflow_model_optimization as tfmot

    return tfmot.quantization.keras.quantize_model(resnet20(seed=0))


def qkeras_model() -> tf.keras.Model | None:
    """Returns the network with QKeras's layers, or None where it is not installed."""
    try:
        import qkeras
    except ImportError as error:
        print(f"QKeras is left out: {error}")
        return None
    weights = {"kernel_quantizer": "quantized_bits(4,0,1)"}

    def clone(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
        config = layer.get_config()
        if isinstance(layer, tf.keras.layers.Conv2D):
            return qkeras.QConv2D(**config, **weights)
        if isinstance(layer, tf.keras.layers.Dense):
            return qkeras.QDense(**config, **weights)
        if isinstance(layer, tf.keras.layers.ReLU):
            return qkeras.QActivation("quantized_relu(4)", name=layer.name)
        return type(layer).from_config(config)

    # Not `qkeras.utils.model_quantize`: Keras 2.14 cannot read what it writes.
    return tf.keras.models.clone_model(resnet20(seed=0), clone_function=clone)


def build_candidates(images: tf.Tensor, labels: tf.Tensor) -> dict[str, Step]:
    """Returns all steps; the baseline comes first."""
    scheme, literal = FedMPQConfig().compose(), FedMPQConfig.literal()
    variants = {
        "FedMPQ": scheme,
        "FedMPQ, with Lasso": dataclasses.replace(scheme, lasso=literal.lasso),
        "FedMPQ, float activations": dataclasses.replace(scheme, activation_bits=None),
    }
    candidates = {"Keras float32": keras_step(resnet20(seed=0), images, labels)}
    for policy, suffix in ((None, ""), (BF16, " (bf16)")):
        for name, variant in variants.items():
            step = client_step(variant, policy, images, labels)
            candidates[name + suffix] = step
    candidates["convolutions alone, float32"] = convolutions(resnet20(seed=0))
    candidates["Keras bf16"] = keras_step(keras_bfloat16_model(), images, labels)
    candidates["tfmot QAT, 8 bits"] = keras_step(tfmot_model(), images, labels)
    qkeras = qkeras_model()
    if qkeras is not None:
        candidates["QKeras, 4 bits"] = keras_step(qkeras, images, labels)
    for bits in (4, 8):
        model = bit_plane_layers.with_bit_planes(resnet20(seed=0), bits)
        candidates[f"BSQ-style planes, {bits} bits"] = keras_step(model, images, labels)
    return candidates


def batch(kind: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a batch of random or of CIFAR-10 images, float32 in [0, 1]."""
    rng = np.random.default_rng(0)
    if kind == "real":
        data = datasets.load("cifar10")
        chosen = rng.permutation(len(data.train_labels))[:BATCH_SIZE]
        images, labels = data.train_images[chosen], data.train_labels[chosen]
    else:
        images = rng.integers(0, 256, [BATCH_SIZE, 32, 32, 3])
        labels = rng.integers(0, 10, BATCH_SIZE)
    return tf.constant(images / 255, tf.float32), tf.constant(labels, tf.int32)


def main() -> None:
    """Times the steps on both kinds of images."""
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="turns per candidate")
    parser.add_argument("--calls", type=int, default=6, help="steps per turn")
    parser.add_argument("--images", choices=["real", "random", "both"], default="both")
    options = parser.parse_args()
    before = measure.environment()
    rows, bars = [], []
    kinds = ["real", "random"] if options.images == "both" else [options.images]
    for kind in kinds:
        timings = measure.time_alternately(
            build_candidates(*batch(kind)),
            repeats=options.repeats,
            calls=options.calls,
            warmup=WARMUP_STEPS,
        )
        rows += [{"images": kind, **row} for row in timings.rows("Keras float32")]
        for candidate, limit in (("FedMPQ", 1.0), ("FedMPQ (bf16)", 0.8)):
            ratio = timings.ratio(candidate, "Keras float32")
            what = f"{candidate} step / Keras float32 step, {kind} images"
            bars.append(measure.bar(what, ratio, at_most=limit))
    measure.save("local_step", rows, bars, before, output=options.output)


if __name__ == "__main__":
    main()

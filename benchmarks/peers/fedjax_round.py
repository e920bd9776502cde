"""A round of FedJAX: ResNet-20 in Haiku, SGD, augmentation.

    python fedjax_round.py CLIENTS.npz BATCH_SIZE

FedJAX's models are functions of weights alone. So clients are written for its
`for_each_client`, which trains one after the other, each on all cores, and whose state
takes what BatchNorm gathers.
"""

from __future__ import annotations

import functools
import sys

import fedjax
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

_FILTERS = (16, 32, 64)
_SGD = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))


def convolve(x, filters: int, size: int, stride: int):
    """Returns a convolution of the input, normalized."""
    x = hk.Conv2D(filters, size, stride, with_bias=False)(x)
    return hk.BatchNorm(True, True, decay_rate=0.9)(x, is_training=True)


def forward(x):
    """Returns the logits of the network that `tff_fedmpq.resnet20` builds."""
    x = jax.nn.relu(convolve(x, 16, 3, 1))
    for stage, filters in enumerate(_FILTERS):
        for block in range(3):
            stride = 2 if stage and not block else 1
            y = jax.nn.relu(convolve(x, filters, 3, stride))
            y = convolve(y, filters, 3, 1)
            shortcut = x if stride == 1 else convolve(x, filters, 1, stride)
            x = jax.nn.relu(y + shortcut)
    return hk.Linear(10)(x.mean((1, 2)))


def crop_and_flip(images, rng):
    """Pads by 4 pixels, crops at random, and mirrors half of the images."""
    padded = jnp.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    crop_rng, flip_rng = jax.random.split(rng)
    offsets = jax.random.randint(crop_rng, (len(images), 2), 0, 9)

    def crop(image, offset):
        return jax.lax.dynamic_slice(image, (*offset, 0), images.shape[1:])

    cropped = jax.vmap(crop)(padded, offsets)
    flips = jax.random.bernoulli(flip_rng, 0.5, (len(images), 1, 1, 1))
    return jnp.where(flips, cropped[:, :, ::-1], cropped)


def train_clients(network: hk.TransformedWithState):
    """Returns FedJAX's function that trains clients."""

    def client_init(shared, rng):
        return {**shared, "momentum": _SGD.init(shared["weights"]), "rng": rng}

    def client_step(state, batch):
        rng, batch_rng = jax.random.split(state["rng"])
        images = crop_and_flip(batch["x"], batch_rng) / 127.5 - 1.0

        def loss_fn(weights):
            logits, norms = network.apply(weights, state["norms"], None, images)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
            return loss.mean(), norms

        gradients, norms = jax.grad(loss_fn, has_aux=True)(state["weights"])
        weights = state["weights"]
        updates, momentum = _SGD.update(gradients, state["momentum"], weights)
        weights = optax.apply_updates(weights, updates)
        trained = {"weights": weights, "norms": norms}
        return {**trained, "momentum": momentum, "rng": rng}

    def client_final(shared, state):
        return {name: state[name] for name in shared}

    return fedjax.for_each_client(client_init, client_step, client_final)


def weighted_average(trees, counts):
    """Returns the average of trees; FedJAX's needs a function that JAX has removed."""

    def average(*leaves):
        total = sum(count * leaf for count, leaf in zip(counts, leaves))
        return (total / sum(counts)).astype(leaves[0].dtype)

    return jax.tree_util.tree_map(average, *trees)


def main(path: str, batch_size: str) -> None:
    """Runs rounds as they are asked for."""
    with np.load(path) as file:
        clients = [
            fedjax.ClientDataset({"x": file[f"images{n}"], "y": file[f"labels{n}"]})
            for n in range(len(file.files) // 2)
        ]
    network = hk.transform_with_state(forward)
    rngs = hk.PRNGSequence(0)
    weights, norms = jax.jit(network.init)(next(rngs), jnp.zeros((1, 32, 32, 3)))
    shared = {"weights": weights, "norms": norms}
    train = train_clients(network)
    average = jax.jit(functools.partial(weighted_average, counts=[*map(len, clients)]))
    print("ready", flush=True)
    while sys.stdin.readline():
        examples = [
            (n, client.shuffle_repeat_batch(batch_size=int(batch_size)), next(rngs))
            for n, client in enumerate(clients)
        ]
        shared = average([trained for _, trained in train(shared, examples)])
        jax.block_until_ready(shared)
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Layers that keep a float variable per bit plane, as BSQ does; to be compared with.

BSQ (Yang et al., ICLR 2021) trains the binary digits of every weight as floats,
positive and negative parts apart, and rounds them in the forward pass with a
straight-through gradient::

    W = s / (2**b - 1) * round(sum_i 2**i (P_i - N_i)),    P_i, N_i in [0, 2]

so a weight of b bits is 2 b float variables. The rule of training is not reproduced
here, only what a step has to compute: forward, gradient, and update of all planes, and
the group Lasso over them.
"""

from __future__ import annotations

import tensorflow as tf

LASSO = 1e-4


class _BitPlanes:
    """Mixin before a stock layer with one kernel: planes instead of the kernel."""

    def __init__(self, *args, bits: int = 8, **kwargs):
        super().__init__(*args, **kwargs)
        self.bits = bits

    def add_weight(self, name=None, shape=None, **kwargs):
        if name != "kernel":
            return super().add_weight(name=name, shape=shape, **kwargs)
        initializer = tf.keras.initializers.RandomUniform(0.0, 1.0, seed=0)
        self.planes = super().add_weight(
            name="planes", shape=(2, self.bits, *shape), initializer=initializer
        )
        self.scale = super().add_weight(
            name="scale", shape=(), initializer="ones", trainable=False
        )
        self.add_loss(self._penalty)
        return self.planes

    def _penalty(self) -> tf.Tensor:
        planes = tf.reshape(self.planes, [2, self.bits, -1])
        return LASSO * tf.reduce_sum(tf.norm(tf.reduce_sum(planes, 0), axis=-1))

    def weights_of_planes(self) -> tf.Tensor:
        """Returns the kernel that the planes stand for."""
        signed = self.planes[0] - self.planes[1]
        powers = tf.constant([2.0**i for i in range(self.bits)])
        levels = tf.tensordot(powers, signed, 1)
        rounded = levels + tf.stop_gradient(tf.round(levels) - levels)
        return self.scale / (2.0**self.bits - 1) * rounded


class _Kernel:
    """Reads a layer's planes where the stock layer reads its kernel."""

    def __get__(self, layer, owner=None):
        return layer.weights_of_planes() if layer is not None else self

    def __set__(self, layer, value):
        pass  # The planes, which `add_weight` has kept.


class BitPlaneConv2D(_BitPlanes, tf.keras.layers.Conv2D):
    """A convolution whose kernel is float bit planes."""

    kernel = _Kernel()


class BitPlaneDense(_BitPlanes, tf.keras.layers.Dense):
    """A dense layer whose kernel is float bit planes."""

    kernel = _Kernel()


_REPLACEMENTS = {
    tf.keras.layers.Conv2D: BitPlaneConv2D,
    tf.keras.layers.Dense: BitPlaneDense,
}


def with_bit_planes(model: tf.keras.Model, bits: int) -> tf.keras.Model:
    """Returns a model with the planes' layers in the place of the stock ones."""

    def clone(layer):
        replacement = _REPLACEMENTS.get(type(layer))
        if replacement is None:
            return layer.__class__.from_config(layer.get_config())
        return replacement(**{**layer.get_config(), "bits": bits})

    return tf.keras.models.clone_model(model, clone_function=clone)

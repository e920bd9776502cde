"""Functions that are traced for a graph end with it."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import tensorflow as tf

from tff_fedmpq.quantization import packing, scales
from tff_fedmpq.quantization.representations import SIGN_MAGNITUDE
from tff_fedmpq.quantization.tracing import forgotten_gradients, traced


def test_a_graph_is_not_kept_by_what_was_traced_in_it():
    with tf.Graph().as_default() as graph:
        packing.pack(tf.zeros([3], tf.uint8), tf.constant(2))
        weights, bits = tf.zeros([3]), tf.constant(2)
        scales.least_squares_scale(weights, bits, SIGN_MAGNITUDE)
    reference = weakref.ref(graph)
    del graph, weights, bits
    gc.collect()
    assert reference() is None


def test_a_function_is_traced_once_for_each_graph():
    traces = []

    @traced([tf.TensorSpec([None])])
    def double(x):
        traces.append(tf.compat.v1.get_default_graph())
        return 2 * x

    for size in (2, 3):
        np.testing.assert_array_equal(double(tf.ones([size])), np.full(size, 2))
    tf.function(lambda: double(tf.ones([4])))()  # Of no graph of its own.
    assert len(traces) == 1
    for _ in range(2):
        with tf.Graph().as_default():
            double(tf.ones([2])), tf.function(lambda: double(tf.ones([3])))()
    assert len(traces) == 3


def test_gradients_in_a_graph_do_not_keep_it():
    @tf.custom_gradient
    def triple(x):
        return 3 * x, lambda upstream: 3 * upstream

    @forgotten_gradients()
    def build():
        with tf.Graph().as_default() as graph:
            x = tf.ones([2])
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.function(triple)(x)
            assert tape.gradient(y, x) is not None
        return weakref.ref(graph)

    reference = build()
    gc.collect()
    assert reference() is None

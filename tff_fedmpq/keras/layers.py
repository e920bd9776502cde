"""Keras layers whose weights are integer codes of b bits, activations of k bits.

`QUANTIZED_FORMS` maps stock layers to their quantized forms, such as `Dense` to
`QuantDense`: the stock layer, computed with the dequantized kernels.
`register_quantized_layer` adds a form. A layer made of layers, such as an LSTM of its
cell, has quantized parts. Additional arguments:

* ``bit_width``: Initial bits per weight, 1 to 8; training may change them. None keeps
  float kernels: the layer is then the stock layer.
* ``activation_bits``: Bits of the activation's output, 1 to 8; None leaves it float.
* ``representation``, ``scale_rule``: Names in `tff_fedmpq.quantization`.
* ``lasso_strength``: Coefficient ``lambda M_l / M`` of the group Lasso (Eq. 11).
* ``lasso_per_weight``: The same divided by the layer's number of weights, for layers
  that are made of layers.
* ``per_channel``: Whether each output channel has its own scale, not only the kernel;
  None means in depthwise kernels.
* ``activation_range``: Largest output of the activation, or a pair (low, high); None is
  the default of `quantization.activations.RANGES`.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tff_fedmpq._tensorflow import keras_module
from tff_fedmpq.keras.activation_layers import (
    ActivationOfBits,
    can_quantize_activation,
)
from tff_fedmpq.keras.quantized_kernel import QuantizedKernel, check_weights
from tff_fedmpq.keras.regularizers import bit_plane_lasso
from tff_fedmpq.quantization import representations, scales


def check_options(
    bit_width: int | None,
    activation_bits: int | None,
    representation: str | representations.Representation,
    scale_rule: str | scales.ScaleRule,
    lasso: float,
    lasso_name: str = "lasso_strength",
) -> None:
    """Raises ValueError if an additional argument of quantized layers is invalid."""
    for bits, what in (bit_width, "bit_width"), (activation_bits, "activation_bits"):
        if bits is not None:
            representations.check_bit_width(bits, what)
    representations.get_representation(representation)
    scales.get_scale_rule(scale_rule)
    if not lasso >= 0:
        raise ValueError(f"{lasso_name} has to be 0 or more, found {lasso!r}.")


# Keras exchanges the base `Layer` of a class where it makes a layer in a graph of
# TensorFlow 1, as TFF's are; of two bases it would exchange one, and hide what the
# stock layer overrides.
_Layer: Any = tf.keras.layers.Layer if TYPE_CHECKING else object


class _KernelView:
    """Attribute of a stock layer that reads a quantized kernel as its weights."""

    def __init__(self, name: str):
        self._name = f"_stored_{name}"

    def __get__(self, layer: Any, owner: type | None = None):
        if layer is None:
            return self
        if self._name not in layer.__dict__:
            raise AttributeError(f"{layer.name} has no kernel before it is built.")
        stored = layer.__dict__[self._name]
        if isinstance(stored, QuantizedKernel):
            return tf.cast(stored.value(), layer.compute_dtype)
        return stored

    def __set__(self, layer: Any, value: Any) -> None:
        layer.__dict__[self._name] = value


class QuantizedLayer(_Layer):
    """Mixin that quantizes the kernels of the stock layer after it in the bases."""

    _kernel_names: tuple[str, ...] = ()  # Names of the kernels in the stock layer.
    _channel_axes: tuple[int, ...] = (-1,)  # Axes of kernels for output channels.
    activation: Any  # Set by the stock layer.

    def __init__(
        self,
        *args: Any,
        bit_width: int | None = representations.MAX_BIT_WIDTH,
        activation_bits: int | None = None,
        representation: str = representations.SIGN_MAGNITUDE.name,
        scale_rule: str = "widening",
        lasso_strength: float = 0.0,
        lasso_per_weight: float = 0.0,
        per_channel: bool | None = False,
        activation_range: float | tuple[float, float] | None = None,
        **kwargs: Any,
    ):
        check_options(
            bit_width, activation_bits, representation, scale_rule, lasso_strength
        )
        options = {
            "bit_width": None if bit_width is None else int(bit_width),
            "representation": representations.get_representation(representation).name,
            "scale_rule": scale_rule,
            "lasso_strength": lasso_strength,
            "lasso_per_weight": lasso_per_weight,
            "per_channel": per_channel,
        }
        # Before the stock layer makes layers, which are quantized when they are set.
        self.__dict__["_options"] = options
        super().__init__(*args, **kwargs)
        self._set_options(options, activation_bits, activation_range)

    def _set_options(
        self,
        options: dict[str, Any],
        activation_bits: int | None = None,
        activation_range: Any = None,
    ) -> None:
        """Sets what the stock layer's constructor does not know."""
        self.__dict__["_options"] = options
        for name, value in options.items():
            self.__dict__[name] = value
        self.__dict__["quantized_kernels"] = {}
        # `quantize_model` assigns other weights, and finding initial scales takes long.
        self.__dict__["has_initial_weights"] = True
        self.__dict__["activation_bits"] = activation_bits
        if activation_bits is not None:
            if not can_quantize_activation(self, activation_range):
                raise ValueError(
                    f"{self.name}: activation_bits quantizes the output of a ReLU or "
                    "another activation of known range: use activation='relu', or "
                    f"leave it out; found {getattr(self, 'activation', None)}."
                )
            function = self.activation
            self.activation = ActivationOfBits(
                function, activation_bits, activation_range
            )

    def change_bit_width(self, bit_width: int) -> None:
        """Changes the bits of a layer whose weights are yet to be assigned."""
        self._options["bit_width"] = self.__dict__["bit_width"] = bit_width
        for kernel in self.quantized_kernels.values():
            kernel.bit_width.assign(bit_width)

    def __setattr__(self, name: str, value: Any) -> None:
        parts = value if isinstance(value, (list, tuple)) else [value]
        for part in parts:
            if isinstance(part, tf.keras.layers.Layer) and "_options" in self.__dict__:
                quantize_parts(part, self._options)
        super().__setattr__(name, value)

    @property
    def quantized_kernel(self) -> QuantizedKernel | None:
        """The quantized kernel, the first of several; None if there is none."""
        return next(iter(self.quantized_kernels.values()), None)

    def add_weight(
        self,
        name: str | None = None,
        shape: Any = None,
        dtype: Any = None,
        initializer: Any = None,
        **kwargs: Any,
    ):
        """Adds a quantized kernel in place of a kernel, else a variable."""
        if name not in self._kernel_names or self.bit_width is None:
            return super().add_weight(name, shape, dtype, initializer, **kwargs)
        if kwargs.get("constraint") is not None:
            raise ValueError(
                f"{self.name}: a kernel constraint acts on float weights, which a "
                "quantized layer does not have. Leave it out, or set bit_width=None."
            )
        check_strategy(self.name)
        initializer = tf.keras.initializers.get(initializer or "glorot_uniform")
        initializer = initializer if self.has_initial_weights else None
        kernel = self._add_quantized_kernel(name, tuple(shape), initializer)
        if kwargs.get("regularizer") is not None:
            self.add_loss(lambda: kwargs["regularizer"](kernel.value()))
        self.quantized_kernels[name] = kernel
        if self.lasso_strength or self.lasso_per_weight:
            self.add_loss(lambda: bit_plane_lasso(kernel, self._lasso_of(kernel)))
        return kernel

    def _lasso_of(self, kernel: QuantizedKernel) -> float:
        """Returns a kernel's part of the Lasso, by its share of the weights."""
        sizes = [other.size for other in self.quantized_kernels.values()]
        share = kernel.size / sum(sizes)
        return self.lasso_strength * share + self.lasso_per_weight * kernel.size

    @classmethod
    def scale_shape(
        cls, name: str, shape: tuple[int, ...], per_channel: bool | None
    ) -> tuple[int, ...]:
        """Returns the shape of a kernel's scale."""
        is_depthwise = name == "depthwise_kernel"
        if not (is_depthwise if per_channel is None else per_channel):
            return ()
        last = (-2, -1) if is_depthwise else cls._channel_axes
        axes = [axis % len(shape) for axis in last]
        return tuple(size if axis in axes else 1 for axis, size in enumerate(shape))

    def _add_quantized_kernel(
        self, name: str, shape: Any, initializer: Any
    ) -> QuantizedKernel:
        """Adds codes and scale of initial weights; without initializer 0 and 1."""
        bit_width = self.bit_width
        representation = representations.get_representation(self.representation)
        scale_rule = scales.get_scale_rule(self.scale_rule)
        scale_shape = self.scale_shape(name, shape, self.per_channel)
        full_name = f"{self.name}/{name}"
        initial: Any = "zeros", "ones"

        # Variables may be initialized outside of the graph under construction, so each
        # initial value is computed separately; a seeded initializer repeats its values.
        def initial_weights() -> tuple[tf.Tensor, tf.Tensor]:
            weights = initializer(shape, tf.float32)
            check_weights(weights, full_name)
            bits = tf.constant(bit_width)
            return weights, scales.scale_of_shape(
                scale_shape, scale_rule, weights, bits, representation
            )

        def initial_scale(shape=None, dtype=None) -> tf.Tensor:
            return initial_weights()[1]

        def initial_codes(shape=None, dtype=None) -> tf.Tensor:
            return representation.quantize(*initial_weights(), tf.constant(bit_width))

        if initializer is not None:
            initializer = _with_seed(initializer)
            initial = initial_codes, initial_scale
        initial_bits = tf.keras.initializers.Constant(bit_width)
        # Not cast automatically: a bfloat16 scale would change every weight.
        fixed = {"trainable": False, "experimental_autocast": False}
        add = super().add_weight
        codes = add(f"{name}_codes", shape, tf.uint8, initial[0])
        scale = add(f"{name}_scale", scale_shape, tf.float32, initial[1], **fixed)
        bits = add(f"{name}_bit_width", (), tf.int32, initial_bits, **fixed)
        return QuantizedKernel(
            codes, scale, bits, representation, scale_rule, full_name
        )

    def set_weights(self, weights: list[Any]) -> None:
        """Sets the weights as `get_weights` gives them; ValueError for other codes."""
        check_codes(self.weights, weights)
        super().set_weights(weights)

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedLayer:
        copy = type(self).from_config(self.get_config())
        # Parts may be built where they are called, as those of attention are.
        for layer, target in zip(self._flatten_layers(), copy._flatten_layers()):
            if layer.built and not target.built:
                target.build_from_config(layer.get_build_config())
        copy.set_weights(self.get_weights())
        return copy

    def build_from_config(self, config: dict[str, Any]) -> None:
        shape = config.get("input_shape")
        if isinstance(shape, list) and not isinstance(shape[-1], (list, tuple)):
            # A file has no tuples, and recurrent layers take a list for several shapes.
            config = {**config, "input_shape": tuple(shape)}
        super().build_from_config(config)

    def get_config(self) -> dict[str, Any]:
        config = {**super().get_config(), **self._options}
        kernel = self.quantized_kernel
        if kernel is not None and hasattr(kernel.bit_width, "numpy"):
            config["bit_width"] = int(kernel.bit_width.numpy())
        if hasattr(self, "activation"):
            config["activation_bits"] = self.activation_bits
        if isinstance(getattr(self, "activation", None), ActivationOfBits):
            config["activation"] = self.activation.keras_name
            config["activation_range"] = list(self.activation.limits)
        return config


def check_strategy(name: str) -> None:
    """Raises ValueError where a strategy would copy the codes to several devices."""
    strategy = tf.distribute.get_strategy()
    is_one = isinstance(strategy, tf.distribute.OneDeviceStrategy)
    is_other = tf.distribute.has_strategy() and not is_one
    if is_other or strategy.num_replicas_in_sync > 1:
        raise ValueError(
            f"{name}: quantized layers train on one device, without a distribution "
            "strategy such as MirroredStrategy."
        )


def check_codes(variables: list[tf.Variable], weights: list[Any]) -> None:
    """Raises ValueError for float weights where variables hold codes."""
    for variable, value in zip(variables, weights):
        if hasattr(variable, "quantized_kernel"):
            value = np.asarray(value)
            if value.dtype.kind not in "ui" or not np.isin(value, range(256)).all():
                name = variable.quantized_kernel.name
                raise ValueError(
                    f"{name} holds codes, integers from 0 to 255; found {value.dtype} "
                    "values. Float weights are set by `quantized_kernel.quantize`."
                )


def _with_seed(initializer: Any) -> Any:
    """Adds a missing seed, drawn as in Keras, so that each call gives equal values."""
    if not hasattr(initializer, "get_config"):
        raise TypeError(
            "Scale and codes of a quantized kernel agree only for a Keras initializer, "
            f"which has a seed; found {initializer!r}."
        )
    config = initializer.get_config()
    if config.get("seed", 0) is not None:
        return initializer
    return type(initializer).from_config({**config, "seed": random.getrandbits(31)})


QUANTIZED_FORMS: dict[type, Any] = {}  # Quantized forms by stock layers.


def register_quantized_layer(
    stock: type, *kernel_names: str, channel_axes: tuple[int, ...] = (-1,)
) -> type:
    """Makes a layer class known to `quantize_model` and returns its quantized form.

    To load a saved model, register the class first.

    Args:
      stock: tf.keras.layers.Layer class.
      *kernel_names: Names of its kernels, both as attributes and in `add_weight`. None
        is needed for a layer whose kernels are those of layers it sets as attributes.
      channel_axes: Axes of a kernel that have a scale of their own if `per_channel`.
    """
    if not (isinstance(stock, type) and issubclass(stock, tf.keras.layers.Layer)):
        raise TypeError(f"The class of a Keras layer is registered; found {stock!r}.")
    attributes: dict[str, Any] = {name: _KernelView(name) for name in kernel_names}
    attributes.update(
        __doc__=f"`{stock.__name__}` on integer codes; arguments: see the module.",
        __module__=__name__,
        _kernel_names=kernel_names,
        _channel_axes=channel_axes,
    )
    form = type(f"Quant{stock.__name__}", (QuantizedLayer, stock), attributes)
    tf.keras.utils.register_keras_serializable(package="tff_fedmpq")(form)
    # Wrappers look for the layer in them without the package.
    tf.keras.utils.get_custom_objects()[form.__name__] = form
    QUANTIZED_FORMS[stock] = form
    return form


def parts_of(layer: tf.keras.layers.Layer) -> list[Any]:
    """Returns a layer and the layers that it is made of."""
    # `submodules` raises ValueError where a cell keeps masks of dropout.
    parts = list(layer._flatten_layers())
    # Bidirectional does not track the pattern of its two layers, but saves it.
    patterns = (vars(x).get("layer") for x in parts if hasattr(x, "forward_layer"))
    return parts + [part for pattern in patterns for part in parts_of(pattern)]


def quantize_parts(
    layer: tf.keras.layers.Layer,
    options: dict[str, Any],
    activation_bits: int | None = None,
) -> None:
    """Gives a layer, and layers that it is made of, their quantized forms in place."""
    for part in parts_of(layer):
        form = QUANTIZED_FORMS.get(type(part))
        if form is not None and not part.built:
            part.__class__ = form
            bits = activation_bits if can_quantize_activation(part) else None
            part._set_options(options, bits)
    given = getattr(layer, "_backward_layer_config", None)
    if given is not None:  # Bidirectional saves the layer that it was given.
        config = tf.keras.layers.serialize(layer.backward_layer)
        config["config"]["name"] = given["config"]["name"]
        layer._backward_layer_config = config


_layers, _register = tf.keras.layers, register_quantized_layer
_OUTPUT_BEFORE_INPUT: dict[str, Any] = {"channel_axes": (-2,)}
QuantConv1D = _register(_layers.Conv1D, "kernel")
QuantConv2D = _register(_layers.Conv2D, "kernel")
QuantConv3D = _register(_layers.Conv3D, "kernel")
QuantConv1DTranspose = _register(
    _layers.Conv1DTranspose, "kernel", **_OUTPUT_BEFORE_INPUT
)
QuantConv2DTranspose = _register(
    _layers.Conv2DTranspose, "kernel", **_OUTPUT_BEFORE_INPUT
)
QuantConv3DTranspose = _register(
    _layers.Conv3DTranspose, "kernel", **_OUTPUT_BEFORE_INPUT
)
QuantDepthwiseConv1D = _register(_layers.DepthwiseConv1D, "depthwise_kernel")
QuantDepthwiseConv2D = _register(_layers.DepthwiseConv2D, "depthwise_kernel")
QuantSeparableConv1D = _register(
    _layers.SeparableConv1D, "depthwise_kernel", "pointwise_kernel"
)
QuantSeparableConv2D = _register(
    _layers.SeparableConv2D, "depthwise_kernel", "pointwise_kernel"
)
QuantDense = _register(_layers.Dense, "kernel")
QuantEinsumDense = _register(_layers.EinsumDense, "kernel")
QuantEmbedding = _register(_layers.Embedding, "embeddings")
QuantSimpleRNNCell = _register(_layers.SimpleRNNCell, "kernel", "recurrent_kernel")
QuantLSTMCell = _register(_layers.LSTMCell, "kernel", "recurrent_kernel")
QuantGRUCell = _register(_layers.GRUCell, "kernel", "recurrent_kernel")
QuantSimpleRNN = _register(_layers.SimpleRNN)
QuantLSTM = _register(_layers.LSTM)
QuantGRU = _register(_layers.GRU)
QuantConvLSTMCell = _register(
    keras_module("layers.rnn.base_conv_lstm").ConvLSTMCell, "kernel", "recurrent_kernel"
)
QuantConvLSTM1D = _register(_layers.ConvLSTM1D)
QuantConvLSTM2D = _register(_layers.ConvLSTM2D)
QuantConvLSTM3D = _register(_layers.ConvLSTM3D)
QuantMultiHeadAttention = _register(_layers.MultiHeadAttention)

"""What goes up: how a client describes its trained model, and what the server adds up.

The server averages what `Uplink.decode` returns, and makes the next global model of the
average with `Uplink.apply`: a scheme that sends models takes the average as it is, one
that sends updates adds it to the model it had.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tff_fedmpq.federated import messages
from tff_fedmpq.federated.model_spec import FloatWeights, ModelSpec
from tff_fedmpq.quantization.representation import Representation

Message = Mapping[str, Any]


class Uplink(abc.ABC):
    """A scheme's way from the client to the server. Instances hold no state.

    Attributes:
      update_bits: bits of an entry, for tables: "v" for a client's budget; None where
        the model goes up as it is.
    """

    update_bits: str | None = None

    @abc.abstractmethod
    def encode(
        self,
        trained: messages.QuantizedWeights,
        received: messages.QuantizedWeights,
        budget: tf.Tensor,
        seed: tf.Tensor,
    ) -> Message:
        """Returns what the client sends, at the client.

        Args:
          trained: the model after training.
          received: the model before it.
          budget: the client's bits per weight, float32[].
          seed: int32[2], for a scheme that rounds at random.
        """

    @abc.abstractmethod
    def decode(self, message: Message, spec: ModelSpec) -> FloatWeights:
        """Returns what the server averages, at the server."""

    @abc.abstractmethod
    def apply(self, present: FloatWeights, mean: FloatWeights) -> FloatWeights:
        """Returns the next global model from the present one and the average."""

    @abc.abstractmethod
    def count_bits(
        self, message: Message, headers: Sequence[tf.Tensor] = ()
    ) -> tf.Tensor:
        """Returns the bits of a message, int64[4] by `messages.BIT_ITEMS`.

        Args:
          message: as `encode` returns it.
          headers: what travels with it besides.
        """

    def symbols(self, message: Message) -> tf.Tensor:
        """Returns what is to be entropy-coded, int16 of `symbols_shape`.

        A scheme that has such symbols counts them as int16 in `count_bits`; their coded
        size takes that place where measurements are read (`simulation.ledger`).
        """
        del message
        return tf.zeros([0, 0], tf.int16)

    def symbols_shape(self, spec: ModelSpec) -> tuple[int, int]:
        """Returns (streams coded apart, symbols in each); (0, 0) without such."""
        del spec
        return 0, 0


class ModelUplink(Uplink):
    """Sends the trained model itself: packed codes, and floats for the rest.

    A model without quantized layers is all rest, so this is FP32's uplink too.
    """

    def __init__(self, representation: Representation):
        self._representation = representation

    def encode(self, trained, received, budget, seed) -> Message:
        del received, budget, seed
        return messages.pack_model(trained)

    def decode(self, message: Message, spec: ModelSpec) -> FloatWeights:
        trained = messages.unpack_model(message, spec)
        return messages.dequantize_weights(trained, self._representation)

    def apply(self, present: FloatWeights, mean: FloatWeights) -> FloatWeights:
        del present
        return mean

    def count_bits(self, message, headers=()) -> tf.Tensor:
        return messages.count_model_bits(message, headers)


class ModelChangeUplink(ModelUplink):
    """Sends the trained model too, but the server adds only what training changed.

        W <- W + gamma sum_n p_n (dequantize(G_n trained) - dequantize(G_n sent))

    So the server's float weights keep what quantization cut off from them, and changes
    too small to alter what a client receives add up over rounds: error feedback (Seide
    et al. 2014; Karimireddy et al. 2019) on the way down, without a bit more traffic.

    A client of few bits rounds at random in steps as large as its levels are apart. A
    server learning rate gamma below 1 (Reddi et al. 2021) averages that noise over
    rounds. The float rest takes the whole change: it was not rounded.

    The server knows what it sent. TFF's aggregation sees only what clients return, so
    here the message is accompanied by the one that was received; it does not count.
    """

    def __init__(
        self, representation: Representation, server_learning_rate: float = 1.0
    ):
        """Initializes the uplink.

        Args:
          representation: what codes stand for.
          server_learning_rate: gamma, of kernels.

        Raises:
          ValueError: if it is not positive.
        """
        super().__init__(representation)
        if not server_learning_rate > 0:
            raise ValueError(
                f"server_learning_rate has to be above 0, found {server_learning_rate}."
            )
        self.server_learning_rate = server_learning_rate

    def encode(self, trained, received, budget, seed) -> Message:
        sent = super().encode(trained, received, budget, seed)
        return {"sent": sent, "received": messages.pack_model(received)}

    def decode(self, message: Message, spec: ModelSpec) -> FloatWeights:
        trained = super().decode(message["sent"], spec)
        received = super().decode(message["received"], spec)
        return tf.nest.map_structure(tf.subtract, trained, received)

    def apply(self, present: FloatWeights, mean: FloatWeights) -> FloatWeights:
        rate = self.server_learning_rate
        kernels = [w + rate * c for w, c in zip(present.kernels, mean.kernels)]
        rest = [w + change for w, change in zip(present.rest, mean.rest)]
        return FloatWeights(tuple(kernels), tuple(rest))

    def count_bits(self, message, headers=()) -> tf.Tensor:
        return super().count_bits(message["sent"], headers)

"""The decoder as a flax module, for people: to look into, to change, to train.

The engine runs ``models.decoder.Decoder``, whose weights are a plain pytree, and never imports
flax, which takes a second.
"""

from __future__ import annotations

from collections.abc import Mapping

from flax import nnx
from jaxtyping import Array, Float, Int

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.decoder import Decoder, dense_logits
from fastgen_jax.models.dense import DenseWeights
from fastgen_jax.models.tensors import is_of_layer, layer_tensors, tensor_shapes


class DecoderLayer(nnx.Module):
    """One layer's weights; matrices are stored [in, out]."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        for name, values in weights.items():
            setattr(self, name, nnx.Param(values))


class DecoderModule(nnx.Module):
    """A decoder whose parameters are flax's.

    ``weights`` maps the names of ``models.tensors.tensor_shapes`` to arrays. Those of layer 0 are
    ``layers[0].q`` and so on, the others ``embed``, ``final_norm`` and whatever the model has.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array]) -> None:
        self.config = config
        self.layers = nnx.List(
            DecoderLayer(
                {
                    name: weights[f"layers.{index}.{name}"]
                    for name in layer_tensors(config, index).shapes
                }
            )
            for index in range(config.num_layers)
        )
        for name in tensor_shapes(config):
            if not is_of_layer(name):
                setattr(self, name, nnx.Param(weights[name]))

    def decoder(self) -> Decoder:
        """The engine's decoder around these parameters."""
        arrays: dict[str, Array] = {}
        for name in tensor_shapes(self.config):
            if is_of_layer(name):
                _, index, part = name.split(".")
                arrays[name] = getattr(self.layers[int(index)], part)[...]
            else:
                arrays[name] = getattr(self, name)[...]
        return Decoder(self.config, DenseWeights(arrays))

    def __call__(self, token_ids: Int[Array, "T"]) -> Float[Array, "T V"]:
        """Logits after every token of one sequence, computed without a cache."""
        return dense_logits(self.decoder(), token_ids)

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
from fastgen_jax.models.layer import MATRICES, VECTORS


class DecoderLayer(nnx.Module):
    """One layer's weights; matrices are stored [in, out]."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        for name in (*VECTORS, *MATRICES):
            setattr(self, name, nnx.Param(weights[name]))


class DecoderModule(nnx.Module):
    """A decoder whose parameters are flax's.

    ``weights`` maps the names of ``models.registry.expected_shapes`` to arrays of one dtype.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array]) -> None:
        self.config = config
        self.embed = nnx.Param(weights["embed"])
        self.layers = nnx.List(
            DecoderLayer({name: weights[f"layers.{i}.{name}"] for name in (*VECTORS, *MATRICES)})
            for i in range(config.num_layers)
        )
        self.final_norm = nnx.Param(weights["final_norm"])
        self.head = None if config.tie_word_embeddings else nnx.Param(weights["head"])

    def decoder(self) -> Decoder:
        """The engine's decoder around these parameters."""
        arrays = {"embed": self.embed[...], "final_norm": self.final_norm[...]}
        for index, layer in enumerate(self.layers):
            for name in (*VECTORS, *MATRICES):
                arrays[f"layers.{index}.{name}"] = getattr(layer, name)[...]
        if self.head is not None:
            arrays["head"] = self.head[...]
        return Decoder(self.config, DenseWeights(arrays))

    def __call__(self, token_ids: Int[Array, "T"]) -> Float[Array, "T V"]:
        """Logits after every token of one sequence, computed without a cache."""
        return dense_logits(self.decoder(), token_ids)

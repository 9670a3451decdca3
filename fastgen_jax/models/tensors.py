"""The tensors that a decoder asks for: names, shapes and kinds, as its configuration says."""

from __future__ import annotations

from dataclasses import dataclass

from fastgen_jax.models.config import ModelConfig, NormConfig, QueryKeyNorm

Shape = tuple[int, ...]

# Of one layer, [in, out].
ATTENTION_MATRICES = ("q", "k", "v", "o")
MLP_MATRICES = ("gate", "up", "down")
SHARED_MATRICES = ("shared_gate", "shared_up", "shared_down")
MATRICES = (*ATTENTION_MATRICES, *MLP_MATRICES, "router", *SHARED_MATRICES)
EXPERTS = ("expert_gate", "expert_up", "expert_down")  # [X, in, out]
# Rows of these are looked up, or decide between tokens; [V, E].
EMBEDDINGS = ("embed", "head")

_ATTENTION_NORMS = ("attn_post_norm", "attn_sum_norm")
_MLP_NORMS = ("mlp_post_norm", "mlp_sum_norm")
_NORM_NAMES = ("attn_norm", *_ATTENTION_NORMS, "mlp_norm", *_MLP_NORMS, "final_norm")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTensors:
    """The names of one layer's tensors, and their shapes."""

    shapes: dict[str, Shape]

    @property
    def matrices(self) -> tuple[str, ...]:
        """Those that rows are multiplied with."""
        return tuple(name for name in self.shapes if name in MATRICES)

    @property
    def vectors(self) -> tuple[str, ...]:
        """Scales, biases and sinks, but for the experts'."""
        others = (name for name in self.shapes if not name.startswith("expert_"))
        return tuple(name for name in others if name not in MATRICES)


def tensor_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Our name and shape of every weight, in the order of loading; matrices are [in, out].

    A layer's are "layers.<index>.<name>". Names that end in "_bias" are added to the product, or
    to the norm, that bears the rest of the name.
    """
    width = config.hidden_size
    embedded = config.embedding_size or width
    shapes: dict[str, Shape] = {"embed": (config.vocab_size, embedded)}
    if config.embedding_size is not None:
        shapes["embed_in"] = (embedded, width)
    if config.learned_positions is not None:
        shapes["positions"] = (config.learned_positions.count, width)
    for index in range(config.num_layers):
        layer = layer_tensors(config, index).shapes
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    if config.has_final_norm:
        shapes |= _norm("final_norm", config.norm, width)
    if config.embedding_size is not None:
        shapes["embed_out"] = (width, embedded)
    if not config.tie_word_embeddings:
        shapes["head"] = (config.vocab_size, embedded)
    if config.has_head_bias:
        shapes["head_bias"] = (config.vocab_size,)
    return shapes


def layer_tensors(config: ModelConfig, index: int) -> LayerTensors:
    """What layer ``index`` has."""
    width = config.hidden_size

    def norms(*places: str) -> dict[str, Shape]:
        chosen = [_norm(place, config.norm, width) for place in places if place in config.norms]
        return {name: shape for norm in chosen for name, shape in norm.items()}

    shapes = norms("attn_norm") | _attention(config) | norms(*_ATTENTION_NORMS)
    shapes |= norms("mlp_norm")
    shapes |= _experts(config) if config.layers[index].is_sparse else _mlp(config)
    return LayerTensors(shapes=shapes | norms(*_MLP_NORMS))


def split_name(name: str) -> tuple[str, int]:
    """A tensor's name without its layer, and the layer; 0 for those of no layer."""
    if not is_of_layer(name):
        return name, 0
    _, layer, part = name.split(".")
    return part, int(layer)


def is_of_layer(name: str) -> bool:
    """Whether a tensor belongs to one layer, which its name says."""
    return name.startswith("layers.")


def is_wide(config: ModelConfig, name: str) -> bool:
    """Whether a tensor of this name, without its layer, is kept in float32 in any case."""
    if name.removesuffix("_bias") in _NORM_NAMES:
        return config.norm.is_wide
    norm = config.attention.query_key_norm
    if name.removesuffix("_bias") in ("q_norm", "k_norm"):
        return norm is not None and norm.norm.is_wide
    return name == "sinks"


def _norm(name: str, norm: NormConfig, size: int) -> dict[str, Shape]:
    scale: dict[str, Shape] = {name: (size,)} if norm.has_scale else {}
    return scale | ({f"{name}_bias": (size,)} if norm.has_bias else {})


def _with_bias(config: ModelConfig, name: str, shape: Shape) -> dict[str, Shape]:
    bias = {f"{name}_bias": shape[1:]} if name in config.biases else {}
    return {name: shape} | bias


def _attention(config: ModelConfig) -> dict[str, Shape]:
    width = config.hidden_size
    heads = config.num_heads * config.head_dim
    kv_heads = config.num_kv_heads * config.head_dim
    sizes = {"q": (width, heads), "k": (width, kv_heads), "v": (width, kv_heads)}
    shapes: dict[str, Shape] = {}
    for name, shape in (sizes | {"o": (heads, width)}).items():
        shapes |= _with_bias(config, name, shape)
    norm = config.attention.query_key_norm
    if norm is not None:
        shapes |= _norm("q_norm", norm.norm, _norm_size(norm, config.num_heads, config))
        shapes |= _norm("k_norm", norm.norm, _norm_size(norm, config.num_kv_heads, config))
    if config.attention.has_sinks:
        shapes["sinks"] = (config.num_heads,)
    return shapes


def _norm_size(norm: QueryKeyNorm, num_heads: int, config: ModelConfig) -> int:
    return config.head_dim * (1 if norm.over == "head" else num_heads)


def _mlp(config: ModelConfig) -> dict[str, Shape]:
    width, inner = config.hidden_size, config.intermediate_size
    sizes = {"gate": (width, inner), "up": (width, inner), "down": (inner, width)}
    shapes: dict[str, Shape] = {}
    for name, shape in sizes.items():
        if name != "gate" or config.mlp.is_gated:
            shapes |= _with_bias(config, name, shape)
    return shapes


def _experts(config: ModelConfig) -> dict[str, Shape]:
    moe, width = config.moe, config.hidden_size
    assert moe is not None, "a sparse layer needs a description of its experts"
    count, inner = moe.num_experts, moe.intermediate_size
    shapes: dict[str, Shape] = {"router": (width, count)}
    if moe.has_router_bias:
        shapes["router_bias"] = (count,)
    sizes = {
        "expert_gate": (count, width, inner),
        "expert_up": (count, width, inner),
        "expert_down": (count, inner, width),
    }
    for name, shape in sizes.items():
        shapes[name] = shape
        if moe.has_expert_biases:
            shapes[f"{name}_bias"] = (count, shape[2])
    if moe.shared_intermediate_size is not None:
        shared = moe.shared_intermediate_size
        shapes |= {
            "shared_gate": (width, shared),
            "shared_up": (width, shared),
            "shared_down": (shared, width),
        }
        if moe.has_shared_gate:
            shapes["shared_router"] = (width,)
    return shapes

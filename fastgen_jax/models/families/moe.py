"""Mixtral, Qwen2-MoE, Qwen3-MoE and gpt-oss: feed-forwards that are mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fastgen_jax.models.config import ClampedGate, MlpConfig, ModelConfig
from fastgen_jax.models.families.hf import (
    FULL,
    SLIDING,
    HfDescription,
    layers_of_kinds,
    uniform_layers,
)
from fastgen_jax.models.families.llama import ATTENTION_BIASES, HF_NAMES, OLD_FREQUENCIES
from fastgen_jax.models.families.parts import all_sparse, mixture_of, with_head_norms
from fastgen_jax.models.families.qwen import QK_NORM_NAMES
from fastgen_jax.models.families.tensor_names import Names, Stored, weight_map
from fastgen_jax.models.weights.family import JsonObject, ModelFamily, Part, WeightMap

_LAYER = "model.layers.{layer}."
_TRAINING = frozenset(
    (
        "initial_context_length",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
    )
)


def mixtral_family() -> ModelFamily:
    """Return the description of Mixtral."""
    return _family("MixtralForCausalLM", "Mixtral", _mixtral, _mixtral_weights)


def qwen2_moe_family() -> ModelFamily:
    """Return the description of Qwen2-MoE."""
    return _family("Qwen2MoeForCausalLM", "Qwen 1.5-MoE, Qwen2-MoE", _qwen2_moe, _qwen_weights)


def qwen3_moe_family() -> ModelFamily:
    """Return the description of Qwen3-MoE."""
    return _family("Qwen3MoeForCausalLM", "Qwen3-MoE", _qwen3_moe, _qwen_weights)


def gpt_oss_family() -> ModelFamily:
    """Return the description of gpt-oss, of weights that aren't quantized."""
    return _family(
        "GptOssForCausalLM",
        "gpt-oss",
        _gpt_oss,
        _gpt_oss_weights,
        limits=("weights in bfloat16 or float32: MXFP4 can't be read",),
    )


def _family(
    architecture: str,
    title: str,
    config_from_hf: Callable[[JsonObject, JsonObject], ModelConfig],
    hf_weights: Callable[[ModelConfig], WeightMap],
    limits: tuple[str, ...] = (),
) -> ModelFamily:
    return ModelFamily(
        architecture=architecture,
        title=title,
        limits=(*limits, "can't be quantized"),
        gguf_architecture=None,
        config_from_hf=config_from_hf,
        config_from_gguf=None,
        hf_weights=hf_weights,
        gguf_weights=None,
    )


def _experts(config: ModelConfig, block: str, names: tuple[str, str, str]) -> Names:
    count = 1 if config.moe is None else config.moe.num_experts
    return {
        "router": f"{_LAYER}{block}.gate",
        **{
            name: Stored(name=f"{_LAYER}{block}.experts.{{piece}}.{stored}", num_pieces=count)
            for name, stored in zip(("expert_gate", "expert_up", "expert_down"), names, strict=True)
        },
    }


def _mixtral(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription({"rms_norm_eps": 1e-5, **config}, generation)
    result = fields.llama_like("MixtralForCausalLM", "mixtral", rope_theta=1e6)
    layers = uniform_layers(result.num_layers, window=fields.window())
    moe = mixture_of(
        fields.integer("num_local_experts", 8),
        fields.integer("num_experts_per_tok", 2),
        result.intermediate_size,
    )
    mlp = replace(result.mlp, activation=fields.activation(default="silu"))
    result = all_sparse(replace(result, layers=layers, moe=moe, mlp=mlp))
    return fields.finish(result, harmless=_TRAINING)


def _mixtral_weights(config: ModelConfig) -> WeightMap:
    names = {**HF_NAMES, **_experts(config, "block_sparse_moe", ("w1", "w3", "w2"))}
    return weight_map(config, names, harmless=OLD_FREQUENCIES, tied=("lm_head.weight",))


def _qwen2_moe(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription(config, generation)
    result = fields.llama_like("Qwen2MoeForCausalLM", "qwen2_moe")
    window = fields.window(4096) if fields.flag("use_sliding_window", False) else None
    fields.get("sliding_window")
    first_full = fields.integer("max_window_layers", 28, minimum=0)
    default = [
        SLIDING if window is not None and index % 2 == 0 and index < first_full else FULL
        for index in range(result.num_layers)
    ]
    kinds = fields.layer_kinds(result.num_layers, default)
    result = _with_qwen_experts(
        fields, replace(result, layers=layers_of_kinds(kinds, window)), has_shared=True
    )
    biases = ("q", "k", "v") if fields.flag("qkv_bias", True) else ()
    return fields.finish(replace(result, biases=biases), harmless=_TRAINING)


def _qwen3_moe(config: JsonObject, generation: JsonObject) -> ModelConfig:
    # Published descriptions say num_experts, those that transformers 5 writes num_local_experts.
    fields = HfDescription({"num_experts": config.get("num_local_experts"), **config}, generation)
    fields.get("num_local_experts")
    result = fields.llama_like("Qwen3MoeForCausalLM", "qwen3_moe")
    window = fields.window(4096) if fields.flag("use_sliding_window", False) else None
    fields.get("sliding_window")
    fields.get("max_window_layers")
    layers = uniform_layers(result.num_layers, window=window)
    result = with_head_norms(replace(result, layers=layers))
    result = _with_qwen_experts(fields, result, has_shared=False)
    biases = ATTENTION_BIASES if fields.flag("attention_bias", False) else ()
    return fields.finish(replace(result, biases=biases), harmless=_TRAINING)


def _with_qwen_experts(
    fields: HfDescription, config: ModelConfig, *, has_shared: bool
) -> ModelConfig:
    """The model with mixtures in every ``decoder_sparse_step``-th layer that isn't left out."""
    moe = replace(
        mixture_of(
            fields.integer("num_experts"),
            fields.integer("num_experts_per_tok"),
            fields.integer("moe_intermediate_size"),
        ),
        normalizes_chosen=fields.flag("norm_topk_prob", False),
        shared_intermediate_size=(
            fields.integer("shared_expert_intermediate_size") if has_shared else None
        ),
        has_shared_gate=has_shared,
    )
    dense = fields.items("mlp_only_layers") or []
    step = fields.integer("decoder_sparse_step", 1)
    layers = tuple(
        replace(layer, is_sparse=index not in dense and (index + 1) % step == 0)
        for index, layer in enumerate(config.layers)
    )
    mlp = replace(config.mlp, activation=fields.activation(default="silu"))
    return replace(config, moe=moe, layers=layers, mlp=mlp)


def _qwen_weights(config: ModelConfig) -> WeightMap:
    shared = _LAYER + "mlp.shared_expert."
    names: Names = {
        **HF_NAMES,
        **QK_NORM_NAMES,
        **_experts(config, "mlp", ("gate_proj", "up_proj", "down_proj")),
        "shared_gate": shared + "gate_proj",
        "shared_up": shared + "up_proj",
        "shared_down": shared + "down_proj",
        "shared_router": Stored(name=_LAYER + "mlp.shared_expert_gate", leading_axes=1),
    }
    return weight_map(config, names, harmless=OLD_FREQUENCIES, tied=("lm_head.weight",))


def _gpt_oss(config: JsonObject, generation: JsonObject) -> ModelConfig:
    fields = HfDescription({"rms_norm_eps": 1e-5, **config}, generation)
    result = fields.llama_like("GptOssForCausalLM", "gpt_oss", head_dim=64, rope_theta=150000.0)
    default = [FULL if index % 2 else SLIDING for index in range(result.num_layers)]
    kinds = fields.layer_kinds(result.num_layers, default)
    fields.require("hidden_act", ("silu",), "this activation")
    limit = fields.positive_number("swiglu_limit", 7.0)
    alpha = fields.positive_number("swiglu_alpha", 1.702)
    top_k = fields.integer("num_experts_per_tok", 4)
    fields.require("experts_per_token", (top_k,), "another number of experts a token")
    moe = replace(
        mixture_of(fields.integer("num_local_experts"), top_k, result.intermediate_size),
        softmax_first=False,
        normalizes_chosen=False,
        has_router_bias=True,
        has_expert_biases=True,
    )
    result = replace(
        result,
        layers=layers_of_kinds(kinds, fields.window(128)),
        norm=replace(result.norm, is_wide=True),
        attention=replace(result.attention, has_sinks=True),
        mlp=MlpConfig(activation=ClampedGate(alpha=alpha, limit=limit), is_gated=True),
        moe=moe,
        biases=ATTENTION_BIASES if fields.flag("attention_bias", True) else (),
    )
    return fields.finish(all_sparse(result), harmless=_TRAINING)


def _gpt_oss_weights(config: ModelConfig) -> WeightMap:
    experts = _LAYER + "mlp.experts."
    halves = {"expert_gate": 0, "expert_up": 1}
    stored = {
        f"{name}{bias}": Stored(
            name=f"{experts}gate_up_proj{bias}",
            part=Part(period=2, start=start, length=1),
            is_transposed=False,
            is_whole_name=True,
        )
        for name, start in halves.items()
        for bias in ("", "_bias")
    }
    down = {
        f"expert_down{bias}": Stored(
            name=f"{experts}down_proj{bias}", is_transposed=False, is_whole_name=True
        )
        for bias in ("", "_bias")
    }
    sinks = Stored(name=_LAYER + "self_attn.sinks", is_whole_name=True)
    names = {**HF_NAMES, **stored, **down, "sinks": sinks, "router": _LAYER + "mlp.router"}
    return weight_map(config, names, tied=("lm_head.weight",))

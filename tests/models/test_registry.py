"""The registry: descriptions become configurations, and no field is overlooked."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen_jax.errors import CheckpointError, UnsupportedModelError
from fastgen_jax.models.config import ModelConfig, llama_config
from fastgen_jax.models.registry import FAMILIES, family_of_gguf, family_of_hf
from fastgen_jax.models.tensors import tensor_shapes

HF = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500.0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 9,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
GGUF = {
    "general.architecture": "llama",
    "general.name": "anything",
    "general.license": "anything",
    "llama.vocab_size": 100,
    "llama.embedding_length": 48,
    "llama.feed_forward_length": 80,
    "llama.block_count": 3,
    "llama.attention.head_count": 6,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 256,
    "llama.attention.layer_norm_rms_epsilon": 9.999999974752427e-07,  # 1e-6 in float32
    "llama.rope.freq_base": 500.0,
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 9,
    "tokenizer.ggml.anything": True,
}
CONFIG = llama_config(
    vocab_size=100,
    hidden_size=48,
    intermediate_size=80,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    rms_norm_eps=1e-6,
    rope_theta=500.0,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_ids=(9,),
)


def from_hf(generation: Mapping[str, object] | None = None, /, **changes: object) -> ModelConfig:
    config = {name: value for name, value in (HF | changes).items() if value != "absent"}
    return family_of_hf(config).config_from_hf(config, generation or {})


def from_gguf(changes: Mapping[str, object] | None = None, *, tensors: tuple[str, ...] = ()):
    changed = GGUF | dict(changes or {})
    fields = {key: value for key, value in changed.items() if value != "absent"}
    build = family_of_gguf(fields).config_from_gguf
    assert build is not None
    return build(fields, dict.fromkeys(tensors))  # type: ignore[arg-type]


def test_both_descriptions_give_the_same_configuration():
    assert from_hf() == CONFIG
    assert from_gguf() == CONFIG


def test_head_of_its_own_unties():
    assert not from_gguf(tensors=("output.weight",)).tie_word_embeddings
    assert not from_hf(tie_word_embeddings=False).tie_word_embeddings
    assert not from_hf(tie_word_embeddings="absent").tie_word_embeddings


def test_head_dim_may_be_stated():
    assert from_hf(head_dim=32).head_dim == 32
    assert from_hf(head_dim=None).head_dim == 8
    fields = {"llama.attention.key_length": 32, "llama.attention.value_length": 32}
    assert from_gguf(fields | {"llama.rope.dimension_count": 32}).head_dim == 32
    assert from_hf(num_attention_heads=5, num_key_value_heads=5, head_dim=10).head_dim == 10


def test_absent_optional_fields_have_documented_values():
    assert from_hf(num_key_value_heads="absent").num_kv_heads == 6
    assert from_hf(rope_theta="absent").ropes[0].theta == 10000.0
    assert from_hf(bos_token_id="absent").bos_token_id is None
    assert from_hf(eos_token_id=None).eos_token_ids == ()
    assert from_gguf({"llama.attention.head_count_kv": "absent"}).num_kv_heads == 6
    assert from_gguf({"llama.rope.freq_base": "absent"}).ropes[0].theta == 10000.0


def test_vocabulary_size_may_follow_from_the_tokens():
    fields = {"llama.vocab_size": "absent", "tokenizer.ggml.tokens": ["a", "b"]}
    assert from_gguf(fields).vocab_size == 2


@pytest.mark.parametrize("theta", [500.0, 500])
@pytest.mark.parametrize("kind", ["rope_type", "type"])
@pytest.mark.parametrize("group", ["rope_parameters", "rope_scaling"])
def test_rotary_base_in_a_group(theta, kind, group):
    changes: dict[str, object] = {group: {"rope_theta": theta, kind: "default"}}
    assert from_hf(**changes).ropes[0].theta == 500.0
    assert from_hf(**changes, rope_theta="absent").ropes[0].theta == 500.0


def test_several_end_of_sequence_ids():
    assert from_hf(eos_token_id=[9, 8, 9]).eos_token_ids == (9, 8)
    assert from_hf({"eos_token_id": [8, 9]}).eos_token_ids == (9, 8)
    assert from_hf({"eos_token_id": 7}, eos_token_id=None).eos_token_ids == (7,)
    fields = {"tokenizer.ggml.eot_token_id": 4, "tokenizer.ggml.eom_token_id": 9}
    assert from_gguf(fields).eos_token_ids == (9, 4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "mistral"),
        ("hidden_act", "quick_gelu"),
        ("qkv_bias", True),
        ("sliding_window", 4096),
        ("quantization_config", {"bits": 4}),
        ("compression_config", {}),
        ("rope_scaling", {"type": "mrope", "factor": 2.0}),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0, "alpha": 1000.0}),
        ("rope_parameters", {"rope_type": "default", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("rope_parameters", {"rope_type": "default", "low_freq_factor": 1.0}),
        ("rope_parameters", {"full_attention": {"rope_type": "default"}}),
        ("partial_rotary_factor", 0.5),
        ("rope_interleaved", True),
        ("layer_types", ["full_attention", "sliding_attention", "full_attention"]),
        ("num_local_experts", 8),
        ("num_experts", 2),
        ("is_encoder_decoder", True),
        ("add_cross_attention", True),
        ("pruned_heads", {"0": [1]}),
        ("auto_map", {"AutoModel": "code.py"}),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.5),
        ("embedding_multiplier", 12.0),
        ("residual_multiplier", 0.2),
        ("attention_multiplier", 0.1),
        ("no_rope_layers", [1, 0, 1]),
        ("a_field_of_the_future", 0),
        ("qk_norm", False),
    ],
)
def test_field_of_other_mathematics_is_refused(field, value):
    with pytest.raises(UnsupportedModelError) as caught:
        from_hf(**{field: value})
    assert str(caught.value.field).startswith(field)
    assert caught.value.remedy
    assert "config.json" in caught.value.problem


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rope_scaling", None),
        ("rope_scaling", {"rope_type": "default"}),
        ("sliding_window", None),
        ("quantization_config", None),
        ("attention_bias", False),
        ("layer_types", ["full_attention"] * 3),
        ("pretraining_tp", 2),
        ("attention_dropout", 0.1),
        ("transformers.js_config", {"dtype": "q4"}),
        ("a_field_of_the_future", None),
    ],
)
def test_field_that_changes_nothing_passes(field, value):
    assert from_hf(**{field: value}) == CONFIG


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", "absent"),
        ("hidden_size", None),
        ("hidden_size", "48"),
        ("hidden_size", True),
        ("intermediate_size", 0),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 3.0),
        ("rms_norm_eps", "absent"),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", False),
        ("rope_theta", float("inf")),
        ("rope_parameters", "default"),
        ("tie_word_embeddings", 1),
        ("eos_token_id", -1),
        ("eos_token_id", [2, "3"]),
        ("eos_token_id", 2.0),
        ("bos_token_id", [1, 2]),
        ("max_position_embeddings", "absent"),
    ],
)
def test_missing_or_malformed_field_is_named(field, value):
    with pytest.raises(CheckpointError) as caught:
        from_hf(**{field: value})
    assert caught.value.field == field
    assert caught.value.remedy


def test_heads_that_cannot_be_grouped_or_rotated():
    with pytest.raises(CheckpointError, match="num_kv_heads=4"):
        from_hf(num_key_value_heads=4)
    with pytest.raises(CheckpointError, match="head_dim=7"):
        from_hf(head_dim=7)
    with pytest.raises(CheckpointError, match="head_dim"):
        from_hf(num_attention_heads=5, num_key_value_heads=5)


def test_contradicting_rotary_bases_are_refused():
    with pytest.raises(CheckpointError, match="stated twice"):
        from_hf(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("general.type", "adapter"),
        ("split.count", 3),
        ("llama.expert_used_count", 2),
        ("llama.rope.scaling.type", "longrope"),
        ("llama.rope.scaling.factor", 4.0),
        ("llama.rope.scaling.attn_factor", 2.0),
        ("llama.rope.scaling.original_context_length", 4096),
        ("llama.rope.scaling.finetuned", True),
        ("llama.rope.scaling.yarn_log_multiplier", 0.1),
        ("llama.rope.scale_linear", 2.0),
        ("llama.rope.dimension_count", 4),
        ("llama.attention.value_length", 16),
        ("llama.attention.sliding_window", 512),
        ("llama.attention.clamp_kqv", 8.0),
        ("llama.attention.scale", 0.1),
        ("llama.attention.causal", False),
        ("llama.attention.layer_norm_epsilon", 1e-5),
        ("llama.logit_scale", 0.1),
        ("llama.embedding_scale", 12.0),
        ("llama.residual_scale", 0.2),
        ("llama.use_parallel_residual", True),
        ("llama.attn_logit_softcapping", 50.0),
        ("llama.final_logit_softcapping", 30.0),
        ("llama.a_field_of_the_future", 1),
        ("adapter.type", "lora"),
    ],
)
def test_metadata_of_other_mathematics_are_refused(field, value):
    with pytest.raises(UnsupportedModelError) as caught:
        from_gguf({field: value})
    assert caught.value.field == field
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("llama.block_count", "absent"),
        ("llama.context_length", "absent"),
        ("llama.attention.head_count", [6, 6, 6]),
        ("llama.attention.head_count_kv", [2, 2, 2]),
        ("llama.attention.layer_norm_rms_epsilon", "absent"),
        ("llama.embedding_length", 48.0),
        ("llama.vocab_size", "absent"),
        ("tokenizer.ggml.eos_token_id", "nine"),
    ],
)
def test_missing_or_malformed_metadata_are_named(field, value):
    with pytest.raises(CheckpointError) as caught:
        from_gguf({field: value})
    assert caught.value.field == field


@pytest.mark.parametrize(
    "names", [None, [], ["MambaForCausalLM"], ["LlamaForCausalLM"] * 2, "LlamaForCausalLM", [3]]
)
def test_unknown_architecture_is_refused(names):
    with pytest.raises(UnsupportedModelError, match=r"architectures.*LlamaForCausalLM"):
        from_hf(architectures=names)


@pytest.mark.parametrize("name", [None, "mamba", 3])
def test_unknown_gguf_architecture_is_refused(name):
    with pytest.raises(UnsupportedModelError, match=r"general\.architecture.*llama"):
        from_gguf({"general.architecture": name})


def test_shapes_of_every_tensor():
    shapes = tensor_shapes(from_hf(head_dim=10, tie_word_embeddings=False))
    assert shapes["embed"] == shapes["head"] == (100, 48)
    assert shapes["layers.2.q"] == (48, 60)
    assert shapes["layers.2.k"] == shapes["layers.2.v"] == (48, 20)
    assert shapes["layers.2.o"] == (60, 48)
    assert shapes["layers.0.gate"] == shapes["layers.0.up"] == (48, 80)
    assert shapes["layers.0.down"] == (80, 48)
    assert shapes["layers.1.attn_norm"] == shapes["layers.1.mlp_norm"] == (48,)
    assert shapes["final_norm"] == (48,)
    assert len(shapes) == 3 + 3 * 9


@given(
    layers=st.integers(1, 5),
    groups=st.integers(1, 4),
    kv_heads=st.integers(1, 4),
    half=st.integers(1, 8),
    tied=st.booleans(),
)
def test_shapes_count_every_parameter(layers, groups, kv_heads, half, tied):
    config = from_hf(
        num_hidden_layers=layers,
        num_attention_heads=groups * kv_heads,
        num_key_value_heads=kv_heads,
        head_dim=2 * half,
        tie_word_embeddings=tied,
    )
    count = 0
    for shape in tensor_shapes(config).values():
        size = 1
        for length in shape:
            size *= length
        count += size
    assert count == config.num_parameters


def test_llama_places_every_tensor_once():
    family = family_of_hf(HF)
    assert family.gguf_weights is not None
    for weights in (family.hf_weights(CONFIG), family.gguf_weights(CONFIG)):
        names = [placement.name for placement in weights.placements]
        assert names == list(tensor_shapes(CONFIG))
        stored = [placement.stored_name for placement in weights.placements]
        assert len(set(stored)) == len(stored)


def test_names_of_families_are_unique():
    architectures = [family.architecture for family in FAMILIES]
    assert len(set(architectures)) == len(architectures)
    in_gguf = [f.gguf_architecture for f in FAMILIES if f.gguf_architecture is not None]
    assert len(set(in_gguf)) == len(in_gguf)
    for family in FAMILIES:
        parts = (family.gguf_architecture, family.config_from_gguf, family.gguf_weights)
        assert len({part is None for part in parts}) == 1

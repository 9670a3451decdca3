"""Qwen 1 is Qwen 2 under other names: the same checkpoint in both forms means the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fastgen_jax.errors import UnsupportedModelError
from fastgen_jax.models.registry import family_of_hf
from fastgen_jax.models.weights.checkpoint import open_checkpoint

HEADS, WIDTH, INNER, LAYERS, VOCABULARY = 4, 32, 48, 2, 96
QWEN = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"},
    "attn_dropout_prob": 0.0,
    "bf16": True,
    "emb_dropout_prob": 0.0,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * INNER,
    "kv_channels": WIDTH // HEADS,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 512,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "rotary_emb_base": 700.0,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 128,
    "tie_word_embeddings": False,
    "use_dynamic_ntk": True,
    "use_flash_attn": "auto",
    "use_logn_attn": True,
    "vocab_size": VOCABULARY,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 700.0,
    "vocab_size": VOCABULARY,
}
NAMES = {
    "wte": "model.embed_tokens",
    "ln_f": "model.norm",
    "ln_1": "input_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "ln_2": "post_attention_layernorm",
    "mlp.w1": "mlp.up_proj",
    "mlp.w2": "mlp.gate_proj",
    "mlp.c_proj": "mlp.down_proj",
}


def write(directory: Path, config: dict[str, object], arrays: dict[str, np.ndarray]) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(arrays, directory / "model.safetensors")
    return directory


@pytest.fixture
def checkpoints(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    old: dict[str, np.ndarray] = {"lm_head.weight": draw(VOCABULARY, WIDTH)}
    new = dict(old)

    def both(old_name: str, new_name: str, values: np.ndarray) -> None:
        old[f"transformer.{old_name}.weight"] = values
        new[f"{new_name}.weight"] = values

    both("wte", NAMES["wte"], draw(VOCABULARY, WIDTH))
    both("ln_f", NAMES["ln_f"], draw(WIDTH))
    shapes = {"mlp.w1": (INNER, WIDTH), "mlp.w2": (INNER, WIDTH), "mlp.c_proj": (WIDTH, INNER)}
    shapes |= {"ln_1": (WIDTH,), "ln_2": (WIDTH,), "attn.c_proj": (WIDTH, WIDTH)}
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            both(f"h.{layer}.{name}", f"model.layers.{layer}.{NAMES[name]}", draw(*shape))
        for ending, shape in (("weight", (WIDTH, WIDTH)), ("bias", (WIDTH,))):
            parts = [draw(*shape) for _ in range(3)]
            old[f"transformer.h.{layer}.attn.c_attn.{ending}"] = np.concatenate(parts)
            for kind, values in zip("qkv", parts, strict=True):
                new[f"model.layers.{layer}.self_attn.{kind}_proj.{ending}"] = values
    return write(tmp_path / "qwen", QWEN, old), write(tmp_path / "qwen2", QWEN2, new)


def test_both_forms_mean_the_same(checkpoints: tuple[Path, Path]) -> None:
    qwen, qwen2 = checkpoints
    with open_checkpoint(qwen) as old, open_checkpoint(qwen2) as new:
        assert old.config == replace(new.config, architecture="QWenLMHeadModel")
        expected = dict(new.tensors(np.dtype(np.float32)))
        for name, values in old.tensors(np.dtype(np.float32)):
            np.testing.assert_array_equal(values, expected.pop(name), err_msg=name)
        assert not expected


@pytest.mark.parametrize(
    ("field", "value"), [("no_bias", False), ("rotary_pct", 0.5), ("a_field_of_the_future", 1)]
)
def test_other_mathematics_are_refused(field: str, value: object) -> None:
    config = QWEN | {field: value}
    with pytest.raises(UnsupportedModelError):
        family_of_hf(config).config_from_hf(config, {})

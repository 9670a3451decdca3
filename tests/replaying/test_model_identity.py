"""Two models are told apart by their configuration and by their files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.weights.description import ModelDescription
from fastgen_jax.replaying.model_identity import logged_model, model_digest

TINY_MODEL = Path(__file__).parents[1] / "references" / "tiny_llama"


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return ModelDescription(TINY_MODEL).config


def test_a_copy_is_the_same_and_another_byte_is_not(tmp_path: Path, config: ModelConfig) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(TINY_MODEL, copy)
    (copy / "README.md").write_text("no weights")
    digest = model_digest(TINY_MODEL, config)
    assert model_digest(copy, config) == digest
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x77")
    assert model_digest(copy, config) != digest
    other = replace(config, eos_token_ids=(9,))
    assert model_digest(TINY_MODEL, other) != digest


def test_a_path_is_named_so_that_it_is_found_from_anywhere(
    monkeypatch: pytest.MonkeyPatch, config: ModelConfig
) -> None:
    monkeypatch.chdir(TINY_MODEL.parent)
    found = logged_model("tiny_llama", TINY_MODEL, config)
    assert found.name == str(TINY_MODEL.resolve())
    named = logged_model("smollm2-135m-instruct", TINY_MODEL, config)
    assert named.name == "smollm2-135m-instruct"

"""Engines over the tiny checkpoint, built once for a module."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastgen_jax import LLM

REFERENCES = Path(__file__).parents[1] / "references"
TINY_MODEL = REFERENCES / "tiny_llama"


@dataclass(frozen=True, slots=True)
class ReferencePrompt:
    """A prompt and what transformers made of it, float32, greedy."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    first_token_logprobs: list[float]


@pytest.fixture(scope="session")
def tiny_prompts() -> list[ReferencePrompt]:
    """Prompts of 5, 17, 40 and 97 tokens for the tiny checkpoint."""
    prompts = json.loads((REFERENCES / "tiny_llama_greedy.json").read_text())["prompts"]
    return [
        ReferencePrompt(p["prompt_token_ids"], p["token_ids"], p["first_token_logprobs"])
        for p in prompts
    ]


@pytest.fixture(scope="session")
def tiny_settings(compilation_cache: Path) -> dict[str, object]:
    """Settings for the tiny checkpoint; compiled programs are shared by all tests of a run."""
    return {
        "dtype": "float32",
        "step_shapes": ((4, 4), (16, 4)),
        "block_size": 8,
        "num_kv_blocks": 64,
        "max_model_len": 256,
        "compilation_cache_dir": str(compilation_cache),
        "show_progress": False,
    }


@pytest.fixture(scope="module")
def tiny_llm(tiny_settings: dict[str, object]) -> Iterator[LLM]:
    """An LLM over the tiny checkpoint, which has no tokenizer."""
    with LLM(TINY_MODEL, **tiny_settings) as llm:
        yield llm

"""Engines over the tiny checkpoint, built once for a module."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastgen_jax import LLM

REFERENCES = Path(__file__).parents[1] / "references"
TINY_SETTINGS = {
    "dtype": "float32",
    "step_shapes": ((4, 4), (16, 4)),
    "block_size": 8,
    "num_kv_blocks": 64,
    "max_model_len": 256,
    "show_progress": False,
}


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


@pytest.fixture(scope="module")
def tiny_llm(compilation_cache: Path) -> Iterator[LLM]:
    """An LLM over the tiny checkpoint, which has no tokenizer."""
    with LLM(REFERENCES / "tiny_llama", **TINY_SETTINGS) as llm:
        yield llm

"""Gemma 3 270M through the whole path: equal to transformers, on both sides of its window."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastgen_jax import LLM, SamplingParams
from fastgen_jax.models.sources import resolve_model
from tests.e2e.conftest import REFERENCES
from tests.e2e.greedy_check import check_greedy

# The weights are 250 MB to download and 1 GB in memory.
pytestmark = [pytest.mark.slow, pytest.mark.real_model]

WINDOW = 512


@pytest.fixture(scope="module")
def gemma(compilation_cache: Path) -> Iterator[LLM]:
    """The model in float32."""
    with LLM(
        resolve_model("gemma3-270m", progress=False),
        dtype="float32",
        step_shapes=((16, 16), (128, 16)),
        num_kv_blocks=200,
        max_model_len=1024,
        compilation_cache_dir=str(compilation_cache),
        show_progress=False,
    ) as llm:
        yield llm


@pytest.fixture(scope="module")
def references() -> list[dict[str, Any]]:
    """10 prompts, two of which are longer than the window, and 48 greedy tokens for each."""
    return json.loads((REFERENCES / "gemma3_greedy.json").read_text())["prompts"]


def test_greedy_tokens_equal_transformers(gemma: LLM, references: list[dict[str, Any]]) -> None:
    assert sum(len(prompt["prompt_token_ids"]) > WINDOW for prompt in references) == 2
    params = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True, logprobs=1)
    outputs = gemma.generate([p["prompt_token_ids"] for p in references], params)
    check_greedy(outputs, references)


def test_tokens_equal_those_of_transformers(gemma: LLM) -> None:
    assert gemma.tokenizer is not None
    cases = json.loads((REFERENCES / "gemma3_tokenizer.json").read_text())["cases"]
    for case in cases:
        assert list(gemma.tokenizer.encode(case["text"])) == case["ids"], case["text"]

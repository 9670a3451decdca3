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

# The weights are 250 MB to download and 1 GB in memory.
pytestmark = [pytest.mark.slow, pytest.mark.real_model]

# As in test_real_model.
CLOSE_MARGIN = 1e-3
LOGPROB_TOLERANCE = 5e-3
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
    num_equal = 0
    for output, prompt in zip(outputs, references, strict=True):
        found, expected = list(output.outputs[0].token_ids), prompt["token_ids"]
        same = [a == b for a, b in zip(found, expected, strict=True)]
        first_other = same.index(False) if False in same else len(same)
        num_equal += first_other == len(same)
        if first_other < len(same):
            assert prompt["margins"][first_other] < CLOSE_MARGIN
        logprobs = output.outputs[0].logprobs or ()
        for i in range(first_other):
            assert logprobs[i][found[i]].logprob == pytest.approx(
                prompt["logprobs"][i], abs=LOGPROB_TOLERANCE
            )
    assert num_equal == len(outputs), "no margin of the committed references is close"


def test_tokens_equal_those_of_transformers(gemma: LLM) -> None:
    assert gemma.tokenizer is not None
    cases = json.loads((REFERENCES / "gemma3_tokenizer.json").read_text())["cases"]
    for case in cases:
        assert list(gemma.tokenizer.encode(case["text"])) == case["ids"], case["text"]

"""Activations rounded to int8, by the whole engine: its default, its error, and in company."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fastgen_jax import LLM, SamplingParams
from pallas_kernels.native import native_obstacle
from tests.e2e.conftest import TINY_MODEL, ReferencePrompt

pytestmark = pytest.mark.skipif(native_obstacle() is not None, reason=str(native_obstacle()))

PARAMS = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=1)


@pytest.fixture(scope="module")
def rounding_llm(tiny_settings: dict[str, object]) -> Iterator[LLM]:
    """With int8 weights, and so with rounded activations."""
    with LLM(TINY_MODEL, quantization="int8", **tiny_settings) as llm:
        yield llm


def answers(llm: LLM, prompts: list[list[int]]) -> tuple[list[list[int]], np.ndarray]:
    """Tokens of each prompt, and their log-probabilities."""
    outputs = [output.outputs[0] for output in llm.generate(prompts, PARAMS)]
    logprobs = [
        entry[token].logprob
        for output in outputs
        for token, entry in zip(output.token_ids, output.logprobs or (), strict=True)
    ]
    return [list(output.token_ids) for output in outputs], np.array(logprobs)


def test_greedy_tokens_do_not_depend_on_company(
    rounding_llm: LLM, tiny_prompts: list[ReferencePrompt]
) -> None:
    """Steps of one row and of many give the same tokens."""
    prompts = [prompt.prompt_token_ids for prompt in tiny_prompts]
    alone = [answers(rounding_llm, [prompt])[0][0] for prompt in prompts]
    assert answers(rounding_llm, prompts)[0] == alone


@pytest.mark.slow
def test_it_can_be_switched_off(
    rounding_llm: LLM,
    tiny_settings: dict[str, object],
    tiny_prompts: list[ReferencePrompt],
) -> None:
    """In the same cache of programs, whose keys must tell the two apart."""
    prompts = [[*prompt.prompt_token_ids, 3] for prompt in tiny_prompts]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)

    def logprobs(llm: LLM) -> np.ndarray:
        entries = [
            entry
            for output in llm.generate(prompts, params)
            for entry in (output.prompt_logprobs or ())[1:]
        ]
        return np.array([one.logprob for entry in entries if entry for one in entry.values()])

    rounded = logprobs(rounding_llm)
    with LLM(
        TINY_MODEL, quantization="int8", activation_quantization="none", **tiny_settings
    ) as exact_llm:
        exact = logprobs(exact_llm)
    with LLM(
        TINY_MODEL,
        quantization="int8",
        activation_quantization="int8",
        implementation="xla",
        **tiny_settings,
    ) as xla_llm:
        reference = logprobs(xla_llm)
    assert rounded.shape == exact.shape
    error = np.abs(rounded - exact).mean()
    assert 1e-3 < error < 0.2
    # Other orders of sums turn ties of rounding here and there, and no more.
    assert np.abs(rounded - reference).mean() < error / 5

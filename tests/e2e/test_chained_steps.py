"""Decode steps chained on the device draw the same tokens as steps launched one by one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastgen_jax import LLM, SamplingParams
from fastgen_jax.outputs import CompletionOutput
from tests.e2e.conftest import TINY_MODEL, ReferencePrompt

CHAIN = 5
LENGTH = 23  # a chain of 5 doesn't divide what is left after the first token


@pytest.fixture(scope="module")
def chained_llm(tiny_settings: dict[str, object]) -> Iterator[LLM]:
    with LLM(TINY_MODEL, **{**tiny_settings, "max_chained_steps": CHAIN}) as llm:
        yield llm


@pytest.fixture(scope="module")
def single_llm(tiny_settings: dict[str, object]) -> Iterator[LLM]:
    with LLM(TINY_MODEL, **{**tiny_settings, "max_chained_steps": 1}) as llm:
        yield llm


SAMPLING: dict[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True),
    "seeded": SamplingParams(temperature=1.0, seed=7, max_tokens=LENGTH, ignore_eos=True),
    "filters": SamplingParams(
        temperature=1.2, top_p=0.8, top_k=20, min_p=0.01, seed=8, max_tokens=LENGTH, ignore_eos=True
    ),
    "penalties": SamplingParams(
        temperature=0,
        repetition_penalty=1.3,
        presence_penalty=0.4,
        frequency_penalty=0.7,
        max_tokens=LENGTH,
        ignore_eos=True,
    ),
    "logprobs": SamplingParams(
        temperature=0.7, seed=9, logprobs=3, prompt_logprobs=2, max_tokens=LENGTH, ignore_eos=True
    ),
    "bias": SamplingParams(
        temperature=0, logit_bias={3: 2.0, 5: -4.0}, max_tokens=LENGTH, ignore_eos=True
    ),
    "long": SamplingParams(temperature=1.0, seed=3, max_tokens=None, ignore_eos=True),
}


def run(llm: LLM, prompt: list[int], params: SamplingParams) -> CompletionOutput:
    return llm.generate(prompt, params)[0].outputs[0]


def assert_equal(found: CompletionOutput, expected: CompletionOutput) -> None:
    assert found.token_ids == expected.token_ids
    assert found.text == expected.text
    assert found.finish_reason is expected.finish_reason
    assert found.stop_reason == expected.stop_reason
    assert found.logprobs == expected.logprobs
    assert found.cumulative_logprob == expected.cumulative_logprob


@pytest.mark.parametrize("name", SAMPLING)
def test_one_request(
    name: str, chained_llm: LLM, single_llm: LLM, tiny_prompts: list[ReferencePrompt]
) -> None:
    prompt = tiny_prompts[1].prompt_token_ids
    assert_equal(run(chained_llm, prompt, SAMPLING[name]), run(single_llm, prompt, SAMPLING[name]))


def test_all_together(
    chained_llm: LLM, single_llm: LLM, tiny_prompts: list[ReferencePrompt]
) -> None:
    """More requests than rows, of different lengths, so that chains begin and break off."""
    kinds = list(SAMPLING.values())[:-1]
    prompts = [prompt.prompt_token_ids for prompt in tiny_prompts] * 2
    params = [kinds[index % len(kinds)] for index in range(len(prompts))]
    found, expected = (llm.generate(prompts, params) for llm in (chained_llm, single_llm))
    for mine, other in zip(found, expected, strict=True):
        assert_equal(mine.outputs[0], other.outputs[0])


@pytest.mark.parametrize("place", range(2, 2 + 2 * CHAIN))
def test_a_stop_at_any_place_of_a_chain(
    place: int, chained_llm: LLM, single_llm: LLM, tiny_prompts: list[ReferencePrompt]
) -> None:
    """What was drawn behind the stop token is dropped, and the next request isn't disturbed."""
    prompt = tiny_prompts[0].prompt_token_ids
    drawn = run(single_llm, prompt, SAMPLING["seeded"]).token_ids
    params = SamplingParams(
        temperature=1.0, seed=7, max_tokens=LENGTH, ignore_eos=True, stop_token_ids=[drawn[place]]
    )
    expected = run(single_llm, prompt, params)
    assert len(expected.token_ids) == drawn.index(drawn[place]) + 1
    assert_equal(run(chained_llm, prompt, params), expected)
    other = tiny_prompts[1].prompt_token_ids
    assert_equal(
        run(chained_llm, other, SAMPLING["greedy"]), run(single_llm, other, SAMPLING["greedy"])
    )


def test_chains_are_launched_and_streams_get_their_tokens_in_order(
    chained_llm: LLM, single_llm: LLM, tiny_prompts: list[ReferencePrompt]
) -> None:
    prompt = tiny_prompts[1].prompt_token_ids
    expected = run(single_llm, prompt, SAMPLING["greedy"]).token_ids
    deltas = [delta.token_ids for delta in chained_llm.stream(prompt, SAMPLING["greedy"])]
    assert [token_id for delta in deltas for token_id in delta] == list(expected)
    assert [len(delta) for delta in deltas if delta] == [1, 5, 5, 5, 5, 2]


def test_a_chain_leaves_other_requests_pages_alone(
    chained_llm: LLM, single_llm: LLM, tiny_prompts: list[ReferencePrompt]
) -> None:
    """A long prompt runs, ends, and is found again in the cache after chains beside it."""
    prompt = tiny_prompts[3].prompt_token_ids
    for _ in range(2):
        assert_equal(
            run(chained_llm, prompt, SAMPLING["greedy"]),
            run(single_llm, prompt, SAMPLING["greedy"]),
        )

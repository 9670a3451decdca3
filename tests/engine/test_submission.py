"""What the engine takes and refuses, and the random streams it hands out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.sampling_params import MAX_SEED, SamplingParams
from fastgen_jax.testing import FakeEngine, fake_engine

GREEDY = SamplingParams(max_tokens=2, temperature=0.0)


@pytest.mark.parametrize(
    ("prompt", "field", "problem"),
    [
        ([], "prompt_token_ids", "empty"),
        ([1, -1], "prompt_token_ids", "outside the vocabulary"),
        ([1, 259], "prompt_token_ids", "outside the vocabulary"),
        ([1, 2.0], "prompt_token_ids", "no token id"),
        ([1, "2"], "prompt_token_ids", "no token id"),
        ([1, True], "prompt_token_ids", "no token id"),
        ([1, np.True_], "prompt_token_ids", "no token id"),
        ([1, None], "prompt_token_ids", "no token id"),
        ("text", "prompt_token_ids", "no token id"),
        (None, "prompt_token_ids", "no token id"),
        (np.array([[1, 2]]), "prompt_token_ids", "no token id"),
        (np.array([1.0]), "prompt_token_ids", "no token id"),
        ([1] * 64, "num_prompt_tokens", "max_model_len is 64"),
        ([1] * 63, "max_tokens", "exceeds max_model_len=64"),
    ],
)
def test_a_bad_prompt_is_refused(prompt: Sequence[int], field: str, problem: str) -> None:
    engine = fake_engine()
    for method in (engine.check, engine.submit):
        with pytest.raises(InvalidRequestError, match=problem) as raised:
            method(prompt, GREEDY)
        assert raised.value.field == field
    assert not engine.has_work, "nothing was queued"


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (SamplingParams(logprobs=6), "logprobs"),
        (SamplingParams(prompt_logprobs=6), "prompt_logprobs"),
        (SamplingParams(stop_token_ids=[259]), "stop_token_ids"),
        (SamplingParams(allowed_token_ids=[259]), "allowed_token_ids"),
        (SamplingParams(logit_bias={259: 1.0}), "logit_bias"),
        (SamplingParams(bad_words=["nine bytes"]), "bad_words"),
    ],
)
def test_what_no_row_can_hold_is_refused(params: SamplingParams, field: str) -> None:
    engine = fake_engine()
    with pytest.raises(InvalidRequestError) as raised:
        engine.submit([1], params)
    assert raised.value.field == field
    assert not engine.has_work


@pytest.mark.parametrize(
    ("params", "field"),
    [(SamplingParams(stop="x"), "stop"), (SamplingParams(bad_words=["x"]), "bad_words")],
)
def test_texts_need_a_tokenizer(params: SamplingParams, field: str) -> None:
    engine = fake_engine(tokenizer=None)
    with pytest.raises(InvalidRequestError, match="needs a tokenizer") as raised:
        engine.submit([1], params)
    assert raised.value.field == field


def test_the_longest_request_is_served() -> None:
    engine = fake_engine()
    (completion,) = engine.submit([1] * 62, SamplingParams(max_tokens=2, ignore_eos=True))
    engine.run()
    assert completion.request.num_output_tokens == 2


@pytest.mark.parametrize(
    "prompt",
    [np.array([1, 2, 3]), np.array([1, 2, 3], np.uint8), [np.int32(1), 2, np.int64(3)], (1, 2, 3)],
)
def test_integers_of_numpy_count_as_ints(prompt: Sequence[int]) -> None:
    engine = fake_engine()
    engine.check(prompt, GREEDY)
    (completion,) = engine.submit(prompt, GREEDY)
    assert completion.request.prompt_token_ids == (1, 2, 3)
    assert {type(i) for i in completion.request.prompt_token_ids} == {int}
    engine.run()


def test_the_prompt_is_copied() -> None:
    engine = fake_engine()
    prompt = [1, 2, 3]
    (completion,) = engine.submit(prompt, GREEDY)
    prompt[0] = 9
    assert completion.request.token_ids == [1, 2, 3]


def seeds(engine: FakeEngine, params: SamplingParams, count: int = 1) -> list[int]:
    """The seeds of the completions of some submissions, as they reach the device."""
    groups = [engine.submit([1, 2], params) for _ in range(count)]
    found: list[int] = []
    for completion in (completion for group in groups for completion in group):
        while completion.request.row < 0:
            engine.step()
        engine.step()
        row = engine.executor.rows[completion.request.row]
        assert row.seed == completion.request.seed
        found.append(row.seed)
    return found


def params_of(seed: int | None, n: int) -> SamplingParams:
    return SamplingParams(seed=seed, n=n, max_tokens=20, ignore_eos=True)


def seeding_engine(seed: int = 0) -> FakeEngine:
    return fake_engine(seed=seed, max_num_seqs=16)


@pytest.mark.parametrize("seed", [0, 7, MAX_SEED])
def test_the_same_seed_is_the_same_stream(seed: int) -> None:
    busy = seeding_engine()
    seeds(busy, params_of(None, 1), count=3)
    assert seeds(busy, params_of(seed, 4)) == seeds(seeding_engine(5), params_of(seed, 4))
    assert seeds(seeding_engine(), params_of(seed, 1)) == [seed]


@pytest.mark.parametrize("seed", [None, 0, MAX_SEED])
def test_children_differ(seed: int | None) -> None:
    found = seeds(seeding_engine(), params_of(seed, 5))
    assert len(set(found)) == 5
    assert all(0 <= one < 2**64 for one in found)


def test_requests_without_a_seed_differ_and_follow_the_engines() -> None:
    first = seeds(seeding_engine(1), params_of(None, 2), count=3)
    assert len(set(first)) == 6
    assert seeds(seeding_engine(1), params_of(None, 2), count=3) == first
    assert not set(seeds(seeding_engine(2), params_of(None, 2), count=3)) & set(first)


def test_only_the_first_child_computes_the_prompts_logprobs() -> None:
    engine = fake_engine()
    group = engine.submit([1, 2], SamplingParams(n=3, prompt_logprobs=1, logprobs=1))
    engine.run()
    assert [c.prompt_logprobs is None for c in group] == [False, True, True]
    assert all(c.logprobs for c in group)


def test_ids_name_the_request_and_the_child() -> None:
    engine = fake_engine()
    ids = [
        completion.request.request_id
        for params in (SamplingParams(), SamplingParams(n=2))
        for completion in engine.submit([1], params)
    ]
    assert ids == ["0", "1-0", "1-1"]

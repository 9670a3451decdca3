"""Random arrivals, lengths, aborts, failures and tiny pools: nobody notices the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import hypothesis.strategies as st
from hypothesis import HealthCheck, event, given, settings

from fastgen_jax.completion import Completion
from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.request import FinishReason
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.scheduling.policy import RequestView
from fastgen_jax.testing import (
    FakeEngine,
    Faults,
    fake_engine,
    fake_logprobs,
    hashed_tokens,
    history_hash,
)
from tests.strategies import prompts

VOCAB = 12
EOS = 9
NEXT_TOKEN = hashed_tokens([0, 1, 2, 0, 1, 2, 0, 1, 2, 5, EOS])
MAX_LOGPROBS = 2


class Youngest:
    """A policy that starves the old, which FCFS never does."""

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        return sorted(candidates, key=lambda request: -request.arrival_index)

    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        return min(running, key=lambda request: request.arrival_index)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One submission, and what becomes of it besides."""

    prompt: tuple[int, ...]
    params: SamplingParams
    priority: int
    salt: str | None
    steps_before: int  # engine steps between the last submission and this one
    abort_after: int | None  # engine steps after all submissions


def sampling_params() -> st.SearchStrategy[SamplingParams]:
    return st.builds(
        lambda max_tokens, min_tokens, n, ignore_eos, stop_ids, logprobs, prompt: SamplingParams(
            max_tokens=max_tokens,
            min_tokens=min(min_tokens, max_tokens or min_tokens),
            n=n,
            ignore_eos=ignore_eos,
            stop_token_ids=stop_ids,
            logprobs=logprobs,
            prompt_logprobs=prompt,
        ),
        st.one_of(st.none(), st.integers(1, 16)),
        st.integers(0, 4),
        st.sampled_from([1, 1, 1, 2, 3]),
        st.booleans(),
        st.sampled_from([None, None, [5], [5, EOS]]),
        st.sampled_from([None, 0, 2]),
        st.sampled_from([None, None, None, 0, 1]),
    )


def asks() -> st.SearchStrategy[list[Ask]]:
    ask = st.builds(
        Ask,
        prompt=prompts(12),
        params=sampling_params(),
        priority=st.integers(0, 2),
        salt=st.sampled_from([None, None, "red"]),
        steps_before=st.integers(0, 3),
        abort_after=st.one_of(st.none(), st.none(), st.integers(0, 12)),
    )
    return st.lists(ask, min_size=1, max_size=7)


@st.composite
def engines(draw: st.DrawFn, faults: Faults | None) -> FakeEngine:
    block_size = draw(st.integers(1, 4))
    return fake_engine(
        policy=draw(st.sampled_from(["fcfs", "priority", Youngest()])),
        token_budget=draw(st.sampled_from([3, 8, 16])),
        max_num_seqs=draw(st.integers(2, 6)),
        max_model_len=draw(st.sampled_from([16, 24])),
        block_size=block_size,
        num_blocks=draw(st.integers(4, 20)) * 4 // block_size + 3,
        chunk_multiple=draw(st.sampled_from([1, 2, 4])),
        max_chained_steps=draw(st.sampled_from([1, 2, 4, 7])),
        enable_prefix_caching=draw(st.sampled_from([True, True, False])),
        vocab_size=VOCAB,
        max_logprobs=MAX_LOGPROBS,
        tokenizer=None,
        eos_token_ids=(EOS,),
        next_token=NEXT_TOKEN,
        faults=faults,
        clock=count().__next__,
    )


def has_nan(history: Sequence[int]) -> bool:
    return history_hash(history) % 29 == 0


@dataclass
class Alone:
    """What a request gives when it runs by itself, in plain Python."""

    tokens: list[int]
    reason: FinishReason
    stop_reason: int | None


def run_alone(completion: Completion, with_nan: bool) -> Alone:
    request = completion.request
    params = request.params
    eos = set() if params.ignore_eos else {EOS}
    stops = eos | set(params.stop_token_ids or ())
    history = list(request.prompt_token_ids)
    tokens: list[int] = []
    while len(tokens) < request.max_output_tokens:
        if with_nan and has_nan(history):
            return Alone(tokens, FinishReason.ERROR, None)
        token = NEXT_TOKEN(history)
        while len(tokens) < params.min_tokens and token in stops:
            token = (token + 1) % VOCAB
        tokens.append(token)
        history.append(token)
        if token in stops:
            return Alone(tokens, FinishReason.STOP, None if token in eos else token)
    return Alone(tokens, FinishReason.LENGTH, None)


def check(completion: Completion, with_nan: bool, may_abort: bool) -> None:
    request, output = completion.request, completion.output()
    expected = run_alone(completion, with_nan)
    if may_abort and request.finish_reason is FinishReason.ABORT:
        assert list(output.token_ids) == expected.tokens[: len(output.token_ids)]
        event("aborted")
    else:
        assert list(output.token_ids) == expected.tokens
        assert output.finish_reason is expected.reason
        assert output.stop_reason == expected.stop_reason
        assert (output.error is not None) == (expected.reason is FinishReason.ERROR)
    check_logprobs(completion)
    metrics = output.metrics
    assert (metrics.first_token_time is None) == (not output.token_ids)
    assert metrics.finished_time is not None
    if metrics.first_token_time is not None:
        assert metrics.first_scheduled_time is not None
        assert metrics.arrival_time < metrics.first_scheduled_time < metrics.first_token_time
        assert metrics.first_token_time <= metrics.finished_time


def check_logprobs(completion: Completion) -> None:
    request, params = completion.request, completion.request.params
    tokens, num_prompt = request.token_ids, request.num_prompt_tokens
    if params.logprobs is None:
        assert completion.logprobs is None
    else:
        assert completion.logprobs is not None
        assert len(completion.logprobs) == request.num_output_tokens
        for position, entry in enumerate(completion.logprobs, start=num_prompt):
            check_entry(entry, tokens[:position], tokens[position], params.logprobs)
    if params.prompt_logprobs is None:
        assert completion.prompt_logprobs is None
    elif request.num_output_tokens:
        assert completion.prompt_logprobs is not None
        assert completion.prompt_logprobs[0] is None
        for position in range(1, num_prompt):
            entry = completion.prompt_logprobs[position]
            check_entry(entry, tokens[:position], tokens[position], params.prompt_logprobs)


def check_entry(entry: object, history: list[int], token: int, count: int) -> None:
    assert isinstance(entry, dict)
    expected = fake_logprobs(history, token, vocab_size=VOCAB, k=MAX_LOGPROBS)
    assert next(iter(entry)) == token
    assert (entry[token].logprob, entry[token].rank) == (expected.logprob, expected.rank)
    assert set(entry) == {token, *expected.top_ids[:count]}
    for place, top_id in enumerate(expected.top_ids[:count]):
        if top_id != token:
            assert entry[top_id].logprob == expected.top_logprobs[place]
            assert entry[top_id].rank == place + 1


def run(engine: FakeEngine, asked: list[Ask]) -> list[Completion]:
    """Submit, abort and step as asked till nothing is left; every completion there was."""
    completions: list[Completion] = []
    aborts: dict[int, list[Completion]] = {}
    for ask in asked:
        for _ in range(ask.steps_before):
            engine.step()
        try:
            group = engine.submit(
                ask.prompt, ask.params, priority=ask.priority, cache_salt=ask.salt
            )
        except InvalidRequestError:
            event("refused")
            continue
        completions += group
        if ask.abort_after is not None:
            aborts.setdefault(ask.abort_after, []).append(group[0])
    for number in range(1500):
        for completion in aborts.get(number, ()):
            engine.abort(completion.request)
        engine.scheduler.check()
        if not engine.has_work:
            return completions
        for completion in engine.step():
            assert completion in completions
    raise AssertionError("requests starve")


@given(data=st.data(), with_nan=st.booleans(), asked=asks())
@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
def test_each_request_runs_as_if_alone(
    data: st.DataObject, with_nan: bool, asked: list[Ask]
) -> None:
    """Tokens, reasons, log-probabilities and times, whatever else happens in the engine."""
    faults = Faults(has_nan=has_nan) if with_nan else None
    engine = data.draw(engines(faults))
    completions = run(engine, asked)
    for completion in completions:
        check(completion, with_nan, may_abort=True)
    metrics = engine.metrics()
    if metrics.scheduler.num_preemptions:
        event("preempted")
    assert metrics.scheduler.num_free_blocks == metrics.scheduler.num_blocks, "blocks leaked"
    assert sum(metrics.num_finished.values()) == len(completions)
    assert metrics.num_output_tokens == sum(c.request.num_output_tokens for c in completions)
    executor = engine.executor
    if max(executor.chain_lengths, default=0) > 1:
        event("chained")
    assert metrics.num_steps == sum(executor.chain_lengths)
    chains = zip(executor.shapes, executor.chain_lengths, strict=True)
    launched = sum(shape.num_tokens * length for shape, length in chains)
    assert metrics.num_step_tokens + metrics.num_padding_tokens == launched

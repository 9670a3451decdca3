"""Chains of decode steps over the fake device: the same outputs, and never at somebody's cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fastgen_jax.completion import Completion
from fastgen_jax.outputs import CompletionOutput
from fastgen_jax.request import FinishReason
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.scheduling.plan import StepPlan
from fastgen_jax.testing import FakeEngine, FakeEvent, Faults, fake_engine, scripted_tokens

CHAIN = 4
PROMPT = [1, 2, 3]
EOS = 257
TEXT = "abcdefghijklmnop"


def scripted(script: Sequence[int] | str = TEXT, **settings: Any) -> FakeEngine:
    """An engine that continues any prompt of three tokens with the script, in chains."""
    tokens = list(script.encode()) if isinstance(script, str) else script
    settings.setdefault("max_chained_steps", CHAIN)
    return fake_engine(next_token=scripted_tokens(len(PROMPT), tokens), **settings)


def finish(engine: FakeEngine, params: SamplingParams) -> CompletionOutput:
    (completion,) = engine.submit(PROMPT, params)
    engine.run()
    return completion.output()


def lengths(engine: FakeEngine) -> list[int]:
    """The chain length of every launch."""
    return engine.executor.chain_lengths


# --- How long a chain is -------------------------------------------------------------------


def test_decodes_are_chained_to_their_end_and_no_further() -> None:
    engine = scripted()
    assert finish(engine, SamplingParams(max_tokens=12)).text == TEXT[:12]
    assert lengths(engine) == [1, 4, 4, 3]


def test_a_chain_never_exceeds_the_models_length() -> None:
    engine = scripted(max_model_len=10)
    output = finish(engine, SamplingParams(max_tokens=None))
    assert (output.text, output.finish_reason) == (TEXT[:7], FinishReason.LENGTH)
    assert lengths(engine) == [1, 4, 2]


def test_the_row_nearest_to_its_end_decides() -> None:
    engine = scripted()
    engine.submit(PROMPT, SamplingParams(max_tokens=4))
    (other,) = engine.submit(PROMPT, SamplingParams(max_tokens=9))
    engine.run()
    assert lengths(engine) == [1, 3, 4, 1]
    assert other.output().text == TEXT[:9]


def test_blocks_must_suffice_for_the_whole_chain() -> None:
    """Two rows and blocks of one token: three free blocks are enough for a step, not for two."""
    engine = scripted(block_size=1, num_blocks=11, enable_prefix_caching=False)
    for _ in range(2):
        engine.submit(PROMPT, SamplingParams(max_tokens=3))
    engine.step()
    pool = engine.scheduler.pool
    taken = pool.allocate(1)
    engine.step()
    pool.release(taken)
    engine.run()
    assert lengths(engine) == [1, 1, 1]
    assert engine.metrics().scheduler.num_preemptions == 0


@pytest.mark.parametrize("settings", [{"max_num_seqs": 1}, {"num_blocks": 5}])
def test_nothing_is_chained_while_somebody_waits(settings: dict[str, Any]) -> None:
    """For a row or for blocks: whoever waits gets them as soon as they are free."""
    plans: list[StepPlan] = []
    engine = scripted(on_plan=plans.append, **settings)
    engine.submit(PROMPT, SamplingParams(max_tokens=9))
    engine.submit(list(range(12)), SamplingParams(max_tokens=2))
    engine.run()
    assert any(plan.num_waiting for plan in plans)
    assert all(plan.chain_length == 1 for plan in plans if plan.num_waiting)


def test_a_prompt_in_chunks_is_not_chained() -> None:
    plans: list[StepPlan] = []
    engine = scripted(on_plan=plans.append, token_budget=6)
    engine.submit(PROMPT, SamplingParams(max_tokens=20))
    engine.step()
    engine.submit(list(range(30)), SamplingParams(max_tokens=2))
    engine.run()
    for plan in plans:
        assert plan.chain_length == 1 or all(row.num_tokens == 1 for row in plan.rows)
    assert [plan.chain_length for plan in plans[:7]] == [1] * 7
    assert max(plan.chain_length for plan in plans) == CHAIN


def test_a_new_request_joins_after_the_chains_in_flight() -> None:
    engine = scripted()
    engine.submit(PROMPT, SamplingParams(max_tokens=30))
    engine.step()
    engine.step()
    (late,) = engine.submit(PROMPT, SamplingParams(max_tokens=2))
    engine.step()
    engine.step()
    assert late.request.num_output_tokens == 1
    assert lengths(engine)[:3] == [1, 4, 1]


def test_two_launches_stay_in_flight() -> None:
    engine = scripted()
    finish(engine, SamplingParams(max_tokens=9))
    assert [event for event in engine.executor.events if event.kind != "write_row"] == [
        FakeEvent("launch", 0),
        FakeEvent("launch", 1),
        FakeEvent("read", 0),
        FakeEvent("launch", 2),
        FakeEvent("read", 1),
        FakeEvent("read", 2),
    ]


# --- What comes out ------------------------------------------------------------------------

PARAMS = [
    SamplingParams(max_tokens=11),
    SamplingParams(max_tokens=11, logprobs=2),
    SamplingParams(max_tokens=11, prompt_logprobs=1),
    SamplingParams(stop="gh"),
    SamplingParams(stop=["ij", "h"], logprobs=0),
    SamplingParams(stop="fg", min_tokens=9, max_tokens=13),
    SamplingParams(stop="ef", include_stop_str_in_output=True),
    SamplingParams(stop_token_ids=[ord("f")]),
    SamplingParams(stop_token_ids=[ord("f")], min_tokens=8, max_tokens=14),
    SamplingParams(max_tokens=30),  # to EOS, the script's last
    SamplingParams(max_tokens=14, ignore_eos=True, skip_special_tokens=False),
]


@pytest.mark.parametrize("chain", [2, 3, CHAIN, 9])
@pytest.mark.parametrize("params", PARAMS)
def test_every_end_is_the_same_as_without_chains(params: SamplingParams, chain: int) -> None:
    script = [*TEXT[:12].encode(), EOS]
    expected = finish(scripted(script, max_chained_steps=1), params)
    engine = scripted(script, max_chained_steps=chain)
    found = finish(engine, params)
    for name in (
        "text", "token_ids", "finish_reason", "stop_reason", "logprobs", "cumulative_logprob",
    ):  # fmt: skip
        assert getattr(found, name) == getattr(expected, name), name
    assert max(lengths(engine)) == chain
    assert engine.metrics().scheduler.num_free_blocks == engine.metrics().scheduler.num_blocks


def test_a_stream_gets_its_tokens_in_order_and_each_once() -> None:
    engine = scripted()
    engine.submit(PROMPT, SamplingParams(stop="klm"))
    texts: list[str] = []
    while engine.has_work:
        touched = engine.step()
        assert len(touched) == len(set(touched)), "a completion is told of twice"
        texts += [c.take_delta().text for c in touched]
    assert "".join(texts) == TEXT[:10]
    assert max(map(len, texts)) == CHAIN


def test_tokens_behind_a_stop_are_dropped() -> None:
    engine = scripted()
    output = finish(engine, SamplingParams(stop_token_ids=[ord("c")]))
    assert bytes(output.token_ids) == b"abc"
    assert lengths(engine) == [1, 4, 4], "the launch in flight ran for nothing"
    assert engine.metrics().num_output_tokens == 3


def test_nan_within_a_chain_ends_its_request_alone() -> None:
    faults = Faults(has_nan=lambda history: list(history) == [*PROMPT, *b"abc"])
    engine = scripted(faults=faults)
    (failing,) = engine.submit(PROMPT, SamplingParams())
    (other,) = engine.submit([9, 9, 9], SamplingParams(max_tokens=11))
    engine.run()
    assert (failing.output().text, failing.output().finish_reason) == ("abc", FinishReason.ERROR)
    assert other.output().text == TEXT[:11]


def test_an_abort_drops_a_whole_chain() -> None:
    engine = scripted()
    (first,) = engine.submit(PROMPT, SamplingParams(max_tokens=30))
    engine.step()
    engine.step()
    engine.abort(first.request)
    (second,) = engine.submit(PROMPT, SamplingParams(max_tokens=6))
    engine.run()
    assert first.output().text == "a"
    assert second.output().text == TEXT[:6]


def test_preemption_waits_for_all_tokens_of_a_chain() -> None:
    """The victim's chain is still in flight when it loses its blocks."""

    def outputs(chain: int) -> tuple[list[str], int, int]:
        engine = scripted(
            TEXT, max_chained_steps=chain, num_blocks=9, block_size=4, enable_prefix_caching=False
        )
        completions: list[Completion] = [
            engine.submit(PROMPT, SamplingParams(max_tokens=16))[0] for _ in range(2)
        ]
        engine.submit([7, 8, 9], SamplingParams(max_tokens=14))
        engine.run()
        metrics = engine.metrics().scheduler
        return [c.output().text for c in completions], metrics.num_preemptions, max(lengths(engine))

    texts, num_preemptions, longest = outputs(CHAIN)
    assert texts == outputs(1)[0] == [TEXT, TEXT]
    assert num_preemptions > 0
    assert longest == CHAIN


def test_counts_include_every_step_of_a_chain() -> None:
    engine = scripted(shapes=[(2, 2), (16, 4)])
    finish(engine, SamplingParams(max_tokens=9))
    metrics = engine.metrics()
    assert lengths(engine) == [1, 4, 4]
    assert metrics.num_steps == 9
    assert metrics.num_decode_tokens == 8
    assert metrics.num_step_tokens == 3 + 8
    assert metrics.num_padding_tokens == 13 + 8

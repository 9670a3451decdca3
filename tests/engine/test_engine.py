"""The loop: two steps in flight, ends, preemption, failures, counts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest

from fastgen_jax.batching import StepResults, StepShape
from fastgen_jax.completion import Completion
from fastgen_jax.errors import ConfigError, EngineClosedError
from fastgen_jax.observe.observer import Observer
from fastgen_jax.request import FinishReason, Request
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.scheduling.plan import StepPlan
from fastgen_jax.testing import (
    FakeDeviceError,
    FakeEngine,
    FakeEvent,
    Faults,
    fake_engine,
    hashed_tokens,
    scripted_tokens,
)

PROMPT = [1, 2, 3]
EOS = 257


def scripted(script: Sequence[int] | str, faults: Faults | None = None) -> FakeEngine:
    """An engine that continues any prompt of three tokens with the script."""
    tokens = list(script.encode()) if isinstance(script, str) else script
    return fake_engine(next_token=scripted_tokens(len(PROMPT), tokens), faults=faults)


def finish(engine: FakeEngine, params: SamplingParams) -> Completion:
    (completion,) = engine.submit(PROMPT, params)
    engine.run()
    return completion


# --- The order of things -------------------------------------------------------------------


def test_a_step_is_launched_before_the_one_before_is_read() -> None:
    engine = scripted("abcdef")
    finish(engine, SamplingParams(max_tokens=4))
    assert [event for event in engine.executor.events if event.kind != "write_row"] == [
        FakeEvent("launch", 0),
        FakeEvent("launch", 1),
        FakeEvent("read", 0),
        FakeEvent("launch", 2),
        FakeEvent("read", 1),
        FakeEvent("launch", 3),
        FakeEvent("read", 2),
        FakeEvent("read", 3),
    ]


def test_an_idle_engine_does_nothing() -> None:
    engine = scripted("a")
    assert not engine.has_work
    assert engine.step() == []
    assert engine.executor.events == []


def test_step_returns_what_got_tokens_or_ended() -> None:
    engine = scripted("ab")
    (completion,) = engine.submit(PROMPT, SamplingParams(max_tokens=2))
    assert engine.step() == []
    assert engine.step() == [completion]
    assert completion.request.token_ids == [*PROMPT, ord("a")]
    assert not completion.request.is_finished
    assert engine.step() == [completion]
    assert completion.request.is_finished
    assert not engine.has_work


def test_every_plan_is_shown_before_it_is_launched() -> None:
    seen: list[tuple[int, int]] = []
    engine = fake_engine(
        on_plan=lambda plan: seen.append((plan.num_tokens, len(engine.executor.shapes)))
    )
    engine.submit(PROMPT, SamplingParams(max_tokens=2))
    engine.run()
    assert seen == [(3, 0), (1, 1), (0, 2)]


class Witness(Observer):
    """Notes every call in words."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def shapes_changed(self, shapes: Sequence[StepShape]) -> None:
        self.heard.append(f"shapes {[shape.num_tokens for shape in shapes]}")

    def submitted(self, requests: Sequence[Request]) -> None:
        self.heard.append(f"submitted {[request.request_id for request in requests]}")

    def planned(self, plan: StepPlan) -> None:
        self.heard.append(f"planned {plan.num_tokens} at {plan.time}")

    def launched(self, plan: StepPlan, shape: StepShape) -> None:
        self.heard.append(f"launched {plan.step_index} as {shape.num_tokens}")

    def read(self, plan: StepPlan, step: int, token_ids: Sequence[int], now: float) -> None:
        tokens = [token_ids[i] for i, samples in enumerate(plan.rows.samples) if samples]
        self.heard.append(f"read {plan.step_index}.{step}: {tokens}")

    def ended(self, request: Request, now: float) -> None:
        assert request.finish_reason is not None
        self.heard.append(f"ended {request.request_id}: {request.finish_reason.value}")


def test_an_observer_hears_everything_in_order() -> None:
    witness = Witness()
    engine = fake_engine(next_token=lambda history: 7, clock=lambda: 2.5, observers=[witness])
    engine.submit(PROMPT, SamplingParams(max_tokens=2, n=2))
    engine.step()
    (aborted,) = engine.submit(PROMPT, SamplingParams(max_tokens=2))
    engine.abort(aborted.request)
    engine.add_shape(StepShape(8, 4))
    engine.run()
    assert witness.heard == [
        "shapes [4, 16]",
        "submitted ['0-0', '0-1']",
        "planned 6 at 2.5",
        "launched 0 as 16",
        "submitted ['1']",
        "ended 1: abort",
        "shapes [4, 8, 16]",
        "planned 2 at 2.5",
        "launched 1 as 4",
        "read 0.0: [7, 7]",
        "planned 0 at 2.5",
        "read 1.0: [7, 7]",
        "ended 0-0: length",
        "ended 0-1: length",
    ]


def test_a_submission_joins_the_running_ones() -> None:
    engine = fake_engine()
    (first,) = engine.submit(PROMPT, SamplingParams(max_tokens=8))
    engine.step()
    (second,) = engine.submit([4, 5], SamplingParams(max_tokens=2))
    engine.run()
    assert first.request.num_output_tokens == 8
    assert second.request.num_output_tokens == 2


# --- Ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "num_tokens", "reason", "stop_reason", "text"),
    [
        (SamplingParams(max_tokens=3), 3, FinishReason.LENGTH, None, "abc"),
        (SamplingParams(max_tokens=9), 6, FinishReason.STOP, None, "abcde"),
        (SamplingParams(max_tokens=6), 6, FinishReason.STOP, None, "abcde"),
        (SamplingParams(max_tokens=8, ignore_eos=True), 8, FinishReason.LENGTH, None, "abcdeff"),
        (SamplingParams(stop_token_ids=[99]), 3, FinishReason.STOP, 99, "ab"),
        (SamplingParams(stop_token_ids=[EOS], ignore_eos=True), 6, FinishReason.STOP, EOS, "abcde"),
        (SamplingParams(stop_token_ids=[EOS]), 6, FinishReason.STOP, None, "abcde"),
        (SamplingParams(stop="cd"), 4, FinishReason.STOP, "cd", "ab"),
        (SamplingParams(stop=["x", "b"]), 2, FinishReason.STOP, "b", "a"),
        (SamplingParams(stop="a"), 1, FinishReason.STOP, "a", ""),
        (
            SamplingParams(stop="cd", include_stop_str_in_output=True),
            4, FinishReason.STOP, "cd", "abcd",
        ),
        (
            SamplingParams(stop_token_ids=[99], include_stop_str_in_output=True),
            3, FinishReason.STOP, 99, "abc",
        ),
        (
            SamplingParams(ignore_eos=True, max_tokens=7, skip_special_tokens=False),
            7, FinishReason.LENGTH, None, "abcde<eos>f",
        ),
        (SamplingParams(stop="cd", max_tokens=4), 4, FinishReason.STOP, "cd", "ab"),
        (SamplingParams(stop="cx", max_tokens=3), 3, FinishReason.LENGTH, None, "abc"),
        (SamplingParams(stop="ex"), 6, FinishReason.STOP, None, "abcde"),
    ],
)  # fmt: skip
def test_ends(
    params: SamplingParams,
    num_tokens: int,
    reason: FinishReason,
    stop_reason: int | str | None,
    text: str,
) -> None:
    output = finish(scripted([*b"abcde", EOS, *b"f"]), params).output()
    assert len(output.token_ids) == num_tokens
    assert (output.finish_reason, output.stop_reason) == (reason, stop_reason)
    assert output.text == text


def test_a_stop_seen_a_step_late_wastes_a_step_but_no_text() -> None:
    engine = scripted("abcdef")
    output = finish(engine, SamplingParams(stop="b")).output()
    assert (output.text, output.token_ids) == ("a", tuple(b"ab"))
    assert len(engine.executor.shapes) == 3, "the step in flight ran for nothing"
    assert engine.metrics().num_output_tokens == 2


def test_min_tokens_hold_eos_and_stop_tokens_back() -> None:
    engine = scripted([*b"a", EOS, EOS, 99])
    params = SamplingParams(min_tokens=3, stop_token_ids=[99], max_tokens=9)
    output = finish(engine, params).output()
    assert len(output.token_ids) == 4
    assert output.token_ids[1] == EOS + 1, "the fake device takes the next token up"
    assert output.stop_reason == 99


def test_none_as_max_tokens_goes_on_to_the_models_length() -> None:
    output = finish(scripted("a"), SamplingParams(max_tokens=None)).output()
    assert output.finish_reason is FinishReason.LENGTH
    assert len(output.token_ids) == 64 - len(PROMPT)


def test_abort_in_every_state() -> None:
    engine = fake_engine(max_num_seqs=1)
    (running,) = engine.submit(PROMPT, SamplingParams(max_tokens=9))
    (waiting,) = engine.submit([7], SamplingParams(max_tokens=9))
    for _ in range(3):
        engine.step()
    tokens = list(running.request.token_ids)
    for completion in (waiting, running):
        engine.abort(completion.request)
        engine.abort(completion.request)  # a finished one stays as it is
        assert completion.output().finish_reason is FinishReason.ABORT
    assert running.first_token_time is not None
    assert waiting.first_scheduled_time is None
    engine.run()
    assert running.request.token_ids == tokens, "the token in flight is dropped"
    assert engine.metrics().num_finished == {"abort": 2}


def test_an_aborted_row_is_free_for_the_next() -> None:
    engine = fake_engine(max_num_seqs=1)
    (first,) = engine.submit(PROMPT, SamplingParams(max_tokens=30))
    (second,) = engine.submit([9, 9], SamplingParams(max_tokens=3))
    for _ in range(3):
        engine.step()
    engine.abort(first.request)
    engine.run()
    assert second.request.num_output_tokens == 3


# --- Preemption ----------------------------------------------------------------------------


def crowded() -> tuple[FakeEngine, list[Completion]]:
    """A pool in which four requests can't grow to their ends side by side."""
    next_token = hashed_tokens(range(97, 123))
    engine = fake_engine(
        num_blocks=11, max_model_len=32, next_token=next_token, clock=count().__next__
    )
    params = SamplingParams(max_tokens=20, logprobs=1)
    return engine, [engine.submit([i, i], params)[0] for i in range(4)]


def test_nothing_is_lost_on_preemption() -> None:
    engine, completions = crowded()
    deltas = {completion.request: "" for completion in completions}
    first_times: dict[int, float] = {}
    while engine.has_work:
        for completion in engine.step():
            deltas[completion.request] += completion.take_delta().text
            time = completion.first_token_time
            assert time is not None
            assert first_times.setdefault(id(completion), time) == time
    assert engine.metrics().scheduler.num_preemptions > 0
    for completion in completions:
        output = completion.output()
        assert output.text == bytes(output.token_ids).decode() == deltas[completion.request]
        assert len(output.token_ids) == 20
        assert output.logprobs is not None
        assert len(output.logprobs) == 20
    assert any(c.output().metrics.num_preemptions for c in completions)


# --- Failures ------------------------------------------------------------------------------


def test_nan_ends_its_request_alone() -> None:
    engine = scripted("abcdef", Faults(has_nan=lambda history: history == [*PROMPT, *b"ab"]))
    (failing,) = engine.submit(PROMPT, SamplingParams())
    (other,) = engine.submit([9, 9, 9], SamplingParams(max_tokens=6))
    engine.run()
    output = failing.output()
    assert (output.finish_reason, output.text) == (FinishReason.ERROR, "ab")
    assert output.error is not None
    assert "NaN" in output.error
    assert other.output().text == "abcdef"


@pytest.mark.parametrize("faults", [Faults(launch_error_at=2), Faults(read_error_at=1)])
def test_a_failing_step_ends_every_request_loudly(faults: Faults) -> None:
    engine = fake_engine(max_num_seqs=2, faults=faults)
    completions = [engine.submit([i, i], SamplingParams(max_tokens=9))[0] for i in range(4)]
    with pytest.raises(EngineClosedError, match="on purpose") as raised:
        engine.run()
    assert isinstance(raised.value.__cause__, FakeDeviceError)
    for completion in completions:
        output = completion.output()
        assert output.finish_reason is FinishReason.ERROR
        assert output.error is not None
        assert "on purpose" in output.error
    assert engine.metrics().num_finished == {"error": 4}
    assert not engine.has_work
    with pytest.raises(EngineClosedError, match="on purpose"):
        engine.step()
    with pytest.raises(EngineClosedError, match="on purpose"):
        engine.submit(PROMPT, SamplingParams())
    with pytest.raises(EngineClosedError, match="on purpose"):
        engine.check(PROMPT, SamplingParams())
    engine.close()
    assert engine.executor.is_closed


def test_a_scheduler_that_breaks_off_leaves_no_request_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = fake_engine()
    completions = [engine.submit([i, i], SamplingParams())[0] for i in range(4)]

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug in the scheduler")

    for name in ("schedule", "fail"):
        monkeypatch.setattr(engine.scheduler, name, broken)
    with pytest.raises(EngineClosedError, match="a bug in the scheduler"):
        engine.step()
    for completion in completions:
        output = completion.output()
        assert output.finish_reason is FinishReason.ERROR
        assert output.error is not None
        assert "a bug in the scheduler" in output.error


def test_an_interrupt_while_waiting_loses_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = scripted("abcdef")
    (completion,) = engine.submit(PROMPT, SamplingParams(max_tokens=6))
    engine.step()
    step = engine._in_flight[0].pending

    def interrupted() -> StepResults:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(step, "read", interrupted)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                engine.step()
    engine.run()
    assert completion.output().text == "abcdef"


def test_an_interrupt_anywhere_else_closes_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between plan and launch: the cache would miss tokens that the scheduler counts as there."""
    engine = scripted("abcdef")
    (completion,) = engine.submit(PROMPT, SamplingParams(max_tokens=6))

    def interrupted(shape: StepShape, packed: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.executor, "launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert completion.output().finish_reason is FinishReason.ERROR
    with pytest.raises(EngineClosedError, match="KeyboardInterrupt"):
        engine.step()


def test_close_aborts_what_is_unfinished() -> None:
    engine = fake_engine()
    (completion,) = engine.submit(PROMPT, SamplingParams(max_tokens=9))
    for _ in range(3):
        engine.step()
    engine.close()
    engine.close()
    assert completion.output().finish_reason is FinishReason.ABORT
    assert engine.executor.is_closed
    with pytest.raises(EngineClosedError, match="was closed"):
        engine.step()


# --- Counts --------------------------------------------------------------------------------


def test_counts_of_steps_shapes_and_padding() -> None:
    engine = fake_engine(shapes=[(2, 2), (8, 4)], token_budget=8)
    engine.submit(list(range(11)), SamplingParams(max_tokens=3, ignore_eos=True))
    engine.run()
    metrics = engine.metrics()
    # Chunks of 8 and 3 tokens, then 2 decodes of 1.
    assert metrics.steps_by_shape == {StepShape(8, 4): 2, StepShape(2, 2): 2}
    assert metrics.num_steps == 4
    assert metrics.num_step_tokens == 13
    assert metrics.num_decode_tokens == 2
    assert metrics.num_padding_tokens == 0 + 5 + 1 + 1
    assert metrics.padding_fraction == 7 / 20
    assert (metrics.num_prompt_tokens, metrics.num_output_tokens) == (11, 3)
    assert metrics.num_finished == {"length": 1}


def test_prefix_hit_rate() -> None:
    engine = fake_engine()
    prompt = list(range(9))
    for expected in (0.0, 8 / 18):
        engine.submit(prompt, SamplingParams(max_tokens=1))
        engine.run()
        assert engine.metrics().scheduler.prefix_hit_rate == expected


def test_a_fresh_engine_has_counted_nothing() -> None:
    metrics = fake_engine().metrics()
    assert metrics.padding_fraction == 0.0
    assert metrics.num_steps == 0


def test_another_policy_schedules_with_the_same_programs() -> None:
    plans: list[StepPlan] = []
    engine = fake_engine(on_plan=plans.append, token_budget=16, max_model_len=32)

    def run() -> list[int]:
        plans.clear()
        for prompt in ([1] * 10, [2] * 10):
            engine.submit(prompt, SamplingParams(max_tokens=2))
        engine.run()
        return [plan.num_tokens for plan in plans if not plan.is_empty]

    assert run() == [16, 5, 1]
    engine.use_policy("prefill_first")
    assert run() == [10, 10, 2]
    engine.use_policy("fcfs", token_budget=6)
    assert run() == [6, 6, 6, 3, 1]
    engine.add_shape(StepShape(8, 4))
    assert max(run()) <= 6  # a budget stays, whatever is compiled later


def test_a_policy_is_changed_between_requests_only() -> None:
    engine = fake_engine(token_budget=16)
    (completion,) = engine.submit(PROMPT, SamplingParams(max_tokens=2))
    with pytest.raises(ConfigError, match="unfinished"):
        engine.use_policy("priority")
    engine.step()
    engine.abort(completion.request)  # its step is still in flight
    engine.use_policy("priority")
    assert not engine.has_work
    with pytest.raises(ConfigError, match="more than the 16 tokens of the largest compiled step"):
        engine.use_policy("priority", token_budget=17)
    with pytest.raises(ConfigError, match="policy"):
        engine.use_policy("best")


class Endings(Observer):
    """What was heard of ends, failures and the close."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def ended(self, request: Request, now: float) -> None:
        assert request.finish_reason is not None
        self.heard.append(request.finish_reason.value)

    def failed(self, problem: str) -> None:
        self.heard.append(f"failed: {problem}")

    def closed(self) -> None:
        self.heard.append("closed")


def test_a_close_is_told_last_and_once() -> None:
    endings = Endings()
    engine = fake_engine(observers=[endings])
    engine.submit(PROMPT, SamplingParams())
    engine.step()
    engine.close()
    engine.close()
    assert endings.heard == ["abort", "closed"]


def test_a_failure_is_told_before_the_ends_that_it_brings() -> None:
    endings = Endings()
    engine = fake_engine(observers=[endings], faults=Faults(launch_error_at=1))
    for _ in range(2):
        engine.submit(PROMPT, SamplingParams())
    with pytest.raises(EngineClosedError):
        engine.run()
    engine.close()
    assert endings.heard[0].startswith("failed: ")
    assert endings.heard[1:] == ["error", "error", "closed"]

"""What is written of a run, event by event."""

from __future__ import annotations

from itertools import count

import pytest

from fastgen_jax.errors import EngineClosedError
from fastgen_jax.observe.events import INPUTS, OUTPUTS, Event, EventStream, digest_of
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.testing import Faults, fake_engine, scripted_tokens


class Collected(EventStream):
    """All events in a list."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)


def test_a_small_run() -> None:
    seen = Collected()
    engine = fake_engine(
        next_token=scripted_tokens(3, [70, 257]), clock=count().__next__, observers=[seen]
    )
    engine.submit([1, 2, 3], SamplingParams(max_tokens=5, seed=4), cache_salt="red")
    engine.run()
    engine.close()
    plan = {"chain_length": 1, "requests": ["0"], "samples": True}
    assert seen.events == [
        {"event": "shapes", "shapes": [[4, 4], [16, 4]]},
        {
            "event": "submit",
            "request": "0",
            "arrival": 0,
            "seed": 4,
            "prompt": [1, 2, 3],
            "params": {"seed": 4, "max_tokens": 5},
            "cache_salt": "red",
        },
        {"event": "plan", "step": 0, "time": 1, "starts": [0], "tokens": [3], **plan}
        | {"free_blocks": 63},
        {"event": "plan", "step": 1, "time": 3, "starts": [3], "tokens": [1], **plan}
        | {"free_blocks": 63},
        {"event": "tokens", "step": 0, "turn": 0, "tokens": [70]},
        {"event": "plan", "step": 2, "time": 5, "starts": [4], "tokens": [1], **plan}
        | {"free_blocks": 62},
        {"event": "tokens", "step": 1, "turn": 0, "tokens": [257]},
        {
            "event": "end",
            "request": "0",
            "reason": "stop",
            "stop_reason": None,
            "num_tokens": 2,
            "digest": digest_of([70, 257]),
            "num_preemptions": 0,
        },
        {"event": "plan", "step": 3, "time": 7, "starts": [], "tokens": [], **plan}
        | {"free_blocks": 64, "requests": []},
        {"event": "tokens", "step": 2, "turn": 0, "tokens": [None]},
        {"event": "close"},
    ]
    assert {event["event"] for event in seen.events} <= INPUTS | OUTPUTS


def test_who_waits_and_who_is_preempted() -> None:
    seen = Collected()
    engine = fake_engine(num_blocks=7, block_size=2, observers=[seen])
    for _ in range(3):
        engine.submit([1, 2, 3], SamplingParams(max_tokens=6, ignore_eos=True))
    engine.run()
    plans = [event for event in seen.events if event["event"] == "plan"]
    assert ["2", "no_blocks"] in [wait for plan in plans for wait in plan.get("waits", ())]
    assert [pair for plan in plans for pair in plan.get("preempted", ())] == [["1", "1"]]
    ends = [event for event in seen.events if event["event"] == "end"]
    assert sorted(end["num_preemptions"] for end in ends) == [0, 0, 1]


def test_a_failure_says_whether_it_was_at_a_launch() -> None:
    for faults, is_launching in (
        (Faults(launch_error_at=1), True),
        (Faults(read_error_at=1), False),
    ):
        seen = Collected()
        engine = fake_engine(faults=faults, observers=[seen])
        engine.submit([1, 2, 3], SamplingParams(max_tokens=6, ignore_eos=True))
        with pytest.raises(EngineClosedError):
            engine.run()
        (failed,) = (event for event in seen.events if event["event"] == "failed")
        assert failed["launching"] is is_launching
        assert seen.events[-1]["reason"] == "error"
        assert failed["error"] in seen.events[-1]["error"]


def test_digests() -> None:
    assert len(digest_of([])) == 16
    assert len({digest_of(ids) for ids in ([], [0], [1], [0, 1], [1, 0], [256])}) == 6

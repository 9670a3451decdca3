"""Differences say who got what, and what the log says instead."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fastgen_jax.observe.log_reader import LoggedEvent
from fastgen_jax.replaying.difference import Difference, difference_of, difference_of_kinds

PLAN: dict[str, Any] = {
    "event": "plan",
    "step": 7,
    "time": 1.5,
    "requests": ["3", "4-1"],
    "starts": [9, 0],
    "tokens": [1, 5],
    "samples": True,
    "waits": [["6", "no_row"], ["7", "no_row"]],
}
TOKENS: dict[str, Any] = {"event": "tokens", "step": 7, "turn": 1, "tokens": [11, None, 13]}
END: dict[str, Any] = {"event": "end", "request": "3", "reason": "stop", "digest": "ab"}


def logged(data: dict[str, Any]) -> LoggedEvent:
    return LoggedEvent(line=812, text=json.dumps(data), data=data)


def difference(before: dict[str, Any], after: dict[str, Any]) -> Difference:
    rows = ("3", "4-1", "5")
    found = difference_of(logged(before), after, step=after.get("step", 7), rows=rows)
    assert found is not None
    return found


@pytest.mark.parametrize("event", [PLAN, TOKENS, END], ids=lambda event: event["event"])
def test_the_same_is_no_difference(event: dict[str, Any]) -> None:
    assert difference_of(logged(dict(event)), event, step=7, rows=()) is None


@pytest.mark.parametrize(
    ("event", "changes", "request_id", "words"),
    [
        (TOKENS, {"tokens": [11, None, 14]}, "5", "request 5 got token 13, the log says 14"),
        (TOKENS, {"tokens": [11, 12, 13]}, "4-1", "request 4-1 got no token, the log says 12"),
        (TOKENS, {"tokens": [11]}, None, "tokens is [11, None, 13], the log says [11]"),
        (TOKENS, {"turn": 0}, None, "turn is 1, the log says 0"),
        (PLAN, {"tokens": [1, 6]}, "4-1", "request 4-1 got 5 tokens of the step, the log says 6"),
        (PLAN, {"starts": [8, 0]}, "3", "request 3 runs from position 9 on, the log says 8"),
        (
            PLAN,
            {"requests": ["3", "5"]},
            "4-1",
            "the next row is request 4-1's, the log says request 5",
        ),
        (
            PLAN,
            {"requests": ["3"], "starts": [9], "tokens": [1]},
            "4-1",
            "the next row is request 4-1's, the log says no row there",
        ),
        (
            PLAN,
            {"requests": ["3", "4-1", "5"], "starts": [9, 0, 0], "tokens": [1, 5, 1]},
            "5",
            "request 5 got no tokens, the log has a row of it",
        ),
        (
            PLAN,
            {"waits": [["6", "no_row"], ["7", "no_blocks"]]},
            "7",
            "request 7 waits for no_row, the log says no_blocks",
        ),
        (
            PLAN,
            {"waits": [["6", "no_row"]]},
            "7",
            "request 7 waits for no_row, the log says nothing",
        ),
        (
            PLAN,
            {"preempted": [["8", "3"]]},
            "8",
            "request 8 was preempted for nothing, the log says 3",
        ),
        (PLAN, {"waits": 5}, None, "waits is"),
        (PLAN, {"step": 8}, None, "step is 7, the log says 8"),
        (END, {"reason": "length"}, "3", "request 3: reason is 'stop', the log says 'length'"),
        (END, {"digest": "cd"}, "3", "request 3 ended with other tokens"),
        (END, {"extra": 1}, "3", "request 3: extra is None, the log says 1"),
    ],
)
def test_what_differs_is_named(
    event: dict[str, Any], changes: dict[str, Any], request_id: str | None, words: str
) -> None:
    found = difference(event | changes, event)
    assert found.request_id == request_id
    assert str(found).startswith(f"line 812, step 7: {words}")
    assert found.field in changes


def test_another_event_altogether() -> None:
    found = difference(END, PLAN)
    assert (found.field, found.logged, found.found) == ("event", "end", "plan")
    assert str(found) == (
        "line 812, step 7: the replay has the plan of step 7, the log says the end of request 3 "
        "(stop)"
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"event": "submit", "request": "9"}, "the submission of request 9"),
        ({"event": "abort", "request": "9"}, "the abort of request 9"),
        ({"event": "shapes"}, "new step shapes"),
        ({"event": "tokens", "step": 3}, "the tokens of step 3"),
        ({"event": "failed", "error": "no device"}, "that the engine failed: no device"),
        ({"event": "close"}, "the engine's close"),
    ],
)
def test_before_the_first_step_there_is_none(data: dict[str, Any], words: str) -> None:
    found = difference_of_kinds(logged(data), "nothing happened", step=None)
    assert str(found) == f"line 812: nothing happened, the log says {words}"

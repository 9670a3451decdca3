"""Where a replay first did something else than the log says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastgen_jax.observe.events import Event
from fastgen_jax.observe.log_reader import LoggedEvent

_NOTHING = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that the log and the replay say differently.

    Attributes:
        line: of the log, from 1; one behind the last where the log ends too early.
        step: the plan that it belongs to; None before the first.
        request_id: whom it concerns; None where it is nobody in particular.
        field: what differs.
        logged, found: the log's value and the replay's.
        what: both in words.
    """

    line: int
    step: int | None
    request_id: str | None
    field: str
    logged: Any
    found: Any
    what: str

    def __str__(self) -> str:
        """Line, step and what differs, in one line."""
        where = f"line {self.line}" if self.step is None else f"line {self.line}, step {self.step}"
        return f"{where}: {self.what}"


@dataclass(frozen=True, slots=True)
class _Found:
    field: str
    request_id: str | None
    logged: Any
    found: Any
    what: str


def difference_of(
    logged: LoggedEvent, found: Event, *, step: int | None, rows: Sequence[str]
) -> Difference | None:
    """The first difference of an event and the log's; None where they say the same.

    ``rows`` are the ids of the requests in the rows of the step whose tokens they are.
    """
    if logged.kind != found["event"]:
        return difference_of_kinds(logged, found, step=step)
    ours = logged.data
    if ours == found:
        return None
    request_id = found.get("request")
    for part in (_in_tokens(ours, found, rows), _in_rows(ours, found), _in_fields(ours, found)):
        if part is not None:
            return Difference(
                line=logged.line,
                step=step,
                request_id=part.request_id or request_id,
                field=part.field,
                logged=part.logged,
                found=part.found,
                what=part.what,
            )
    raise AssertionError("events that differ in no field")


def difference_of_kinds(logged: LoggedEvent, found: Event | str, *, step: int | None) -> Difference:
    """Something else happened altogether; ``found`` as an event or in words."""
    told = describe(logged.data)
    what = found if isinstance(found, str) else f"the replay has {describe(found)}"
    return Difference(
        line=logged.line,
        step=step,
        request_id=logged.data.get("request"),
        field="event",
        logged=logged.kind,
        found=found if isinstance(found, str) else found["event"],
        what=f"{what}, the log says {told}",
    )


def describe(event: Event) -> str:
    """An event in a few words."""
    match event["event"]:
        case "submit":
            return f"the submission of request {event.get('request')}"
        case "abort":
            return f"the abort of request {event.get('request')}"
        case "end":
            return f"the end of request {event.get('request')} ({event.get('reason')})"
        case "shapes":
            return "new step shapes"
        case "policy":
            return f"the change to the policy {event.get('policy')}"
        case "plan":
            return f"the plan of step {event.get('step')}"
        case "tokens":
            return f"the tokens of step {event.get('step')}"
        case "failed":
            return f"that the engine failed: {event.get('error')}"
        case _:
            return "the engine's close"


def _in_tokens(ours: Event, found: Event, rows: Sequence[str]) -> _Found | None:
    """The first token that isn't the log's, in the results of the same step."""
    if found["event"] != "tokens" or _place(ours) != _place(found):
        return None
    logged = ours.get("tokens")
    if not isinstance(logged, list) or len(logged) != len(found["tokens"]):
        return None
    for request_id, old, new in zip(rows, logged, found["tokens"], strict=False):
        if old != new:
            what = f"request {request_id} got {_token(new)}, the log says {_number(old)}"
            return _Found("tokens", request_id, old, new, what)
    return None


def _in_rows(ours: Event, found: Event) -> _Found | None:
    """The first row of a plan that isn't the log's."""
    if found["event"] != "plan" or ours.get("step") != found["step"]:
        return None
    columns = ("requests", "starts", "tokens")
    if not all(isinstance(ours.get(name), list) for name in columns):
        return None
    for place, request_id in enumerate(found["requests"]):
        for name in columns:
            new = found[name][place]
            old = ours[name][place] if place < len(ours[name]) else None
            if old != new:
                return _Found(name, request_id, old, new, _row_words(name, request_id, old, new))
    missing = ours["requests"][len(found["requests"]) :]
    if missing:
        what = f"request {missing[0]} got no tokens, the log has a row of it"
        return _Found("requests", missing[0], missing[0], None, what)
    return None


def _row_words(name: str, request_id: str, old: Any, new: Any) -> str:
    if name == "starts":
        return f"request {request_id} runs from position {new} on, the log says {_number(old)}"
    if name == "tokens":
        return f"request {request_id} got {new} tokens of the step, the log says {_number(old)}"
    said = "no row there" if old is None else f"request {old}"
    return f"the next row is request {request_id}'s, the log says {said}"


def _in_fields(ours: Event, found: Event) -> _Found | None:
    for name in (*found, *(name for name in ours if name not in found)):
        old, new = ours.get(name, _NOTHING), found.get(name, _NOTHING)
        if old == new:
            continue
        old, new = (None if value is _NOTHING else value for value in (old, new))
        request_id = found.get("request")
        if name in ("waits", "preempted"):
            request_id, old, new = _first_pair(old, new)
        of_whom = f"request {request_id}: " if request_id is not None else ""
        what = f"{of_whom}{name} is {new!r}, the log says {old!r}"
        if name == "digest":
            what = f"request {request_id} ended with other tokens than the log's end of it says"
        if name in ("waits", "preempted") and request_id is not None:
            verb = "waits for" if name == "waits" else "was preempted for"
            what = (
                f"request {request_id} {verb} {new or 'nothing'}, the log says {old or 'nothing'}"
            )
        return _Found(name, request_id, old, new, what)
    return None


def _first_pair(old: Any, new: Any) -> tuple[str | None, Any, Any]:
    """The first (request, why) that isn't in both lists: the request, the log's why, the other."""
    try:
        before, after = dict(old or ()), dict(new or ())
    except (TypeError, ValueError):
        return None, old, new
    for request_id in (*after, *before):
        if before.get(request_id) != after.get(request_id):
            return request_id, before.get(request_id), after.get(request_id)
    return None, old, new  # another order


def _place(event: Event) -> tuple[Any, Any]:
    return event.get("step"), event.get("turn")


def _token(value: Any) -> str:
    return "no token" if value is None else f"token {value}"


def _number(value: Any) -> str:
    return "none" if value is None else f"{value}"

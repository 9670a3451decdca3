"""What each request did over time, a lane each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from fastgen_jax.markup import Markup, element
from fastgen_jax.observe import words
from fastgen_jax.observe.drawing import group, line, rect, text
from fastgen_jax.observe.lives import Moment, RequestLife
from fastgen_jax.observe.time_axis import TimeAxis
from fastgen_jax.scheduling.plan import Reason

MOST_LANES = 40
LANE = 15.0
_BAR = 10.0
_THIN = 3.0
_MOST_SEGMENTS = 6000
_RAN = {Reason.DECODE: "decode", Reason.CHUNK: "prefill", Reason.LAST_CHUNK: "prefill"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of a lane.

    Attributes:
        kind: "wait", "prefill", "decode", or "lost": waiting after a preemption.
        start, end: on the engine's clock.
        tooltip: what happened.
    """

    kind: str
    start: float
    end: float
    tooltip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A request's stretches in order, and the moments when it was preempted."""

    request_id: str
    segments: tuple[Segment, ...]
    preemptions: tuple[tuple[float, str], ...]


def lanes(found: Sequence[RequestLife], axis: TimeAxis) -> tuple[list[Lane], bool]:
    """A lane for each life, and whether stretches were drawn together to keep them few."""
    whole = [_lane(life, axis) for life in found]
    narrowest = 0.7
    thin = [_merge(lane, axis, narrowest) for lane in whole]
    while sum(len(lane.segments) for lane in thin) > _MOST_SEGMENTS:
        narrowest *= 2
        thin = [_merge(lane, axis, narrowest) for lane in whole]
    return thin, any(len(a.segments) < len(b.segments) for a, b in zip(thin, whole, strict=True))


def draw_lanes(found: Sequence[Lane], axis: TimeAxis, top: float) -> Markup:
    """The lanes from ``top`` down, ``LANE`` pixels each."""
    return element(
        "g", *(_draw(lane, axis, top + LANE * number) for number, lane in enumerate(found))
    )


def _draw(lane: Lane, axis: TimeAxis, top: float) -> Markup:
    middle = top + LANE / 2
    shapes = [
        line("fg-grid", axis.left, middle, axis.right, middle),
        text(_short(lane.request_id), axis.left - 6, middle + 4, anchor="end"),
    ]
    for segment in lane.segments:
        left = axis.x(segment.start)
        width = max(axis.x(segment.end) - left, 0.3)
        height = _BAR if segment.kind in ("prefill", "decode") else _THIN
        bar = rect(f"fg-{segment.kind}", left, middle - height / 2, width, height)
        shapes.append(group(segment.tooltip, bar))
    for time, tooltip in lane.preemptions:
        x, half = axis.x(time), LANE / 2 - 1
        mark = element(
            "path",
            attributes={
                "class": "fg-preempted",
                "d": f"M{x - 3.5:.1f} {middle - half:.1f}h7l-3.5 {2 * half:.1f}z",
            },
        )
        shapes.append(group(tooltip, mark))
    return element("g", *shapes)


def _lane(life: RequestLife, axis: TimeAxis) -> Lane:
    request_id = life.trace.request_id
    shown = [m for m in life.moments if m.reason is not Reason.IN_FLIGHT]
    counted = set(life.runs)
    begin = max(life.trace.request.arrival_time, axis.start)
    segments: list[Segment] = []
    preemptions: list[tuple[float, str]] = []
    is_lost = False
    for kind, members in _stretches(shown, counted):
        last = life.steps[members[-1].position]
        if kind == "preempted":
            time = max(last.start, begin)
            preemptions.append((time, f"request {request_id} in step {last.index}: preempted"))
            is_lost, begin = True, time
            continue
        if kind == "wait":
            end = _until(life, members[-1], axis)
        else:
            first = life.steps[members[0].position]
            if first.start > begin:
                tooltip = f"request {request_id}: waited for step {first.index} to begin"
                waited = "lost" if is_lost else "wait"
                segments.append(Segment(kind=waited, start=begin, end=first.start, tooltip=tooltip))
                begin = first.start
            end = axis.end if math.isnan(last.end) else last.end
            is_lost = False
        tooltip = (
            f"request {request_id}: {_tell(life, kind, members)}, {words.seconds(end - begin)}"
        )
        segments.append(
            Segment(kind="lost" if is_lost else kind, start=begin, end=end, tooltip=tooltip)
        )
        begin = end
    return Lane(request_id=request_id, segments=tuple(segments), preemptions=tuple(preemptions))


def _stretches(
    moments: Iterable[Moment], counted: set[Moment]
) -> Iterable[tuple[str, list[Moment]]]:
    """Moments that follow each other and are shown as one; every chunk by itself."""

    def key(moment: Moment) -> tuple[str, int]:
        if moment.reason is Reason.PREEMPTED:
            return "preempted", moment.position
        if not moment.ran:
            return "wait", 0
        if moment not in counted:
            return "dropped", 0
        kind = _RAN[moment.reason] if moment.reason is not None else ""
        return kind, moment.position if kind == "prefill" else 0

    for (kind, _), members in groupby(moments, key=key):
        if kind != "dropped":
            yield kind, list(members)


def _until(life: RequestLife, moment: Moment, axis: TimeAxis) -> float:
    """When the step after the moment began, or its request ended."""
    after = moment.position + 1
    if after < len(life.steps):
        return life.steps[after].start
    return axis.end if life.trace.end_time is None else min(life.trace.end_time, axis.end)


def _tell(life: RequestLife, kind: str, members: Sequence[Moment]) -> str:
    first, last = life.steps[members[0].position].index, life.steps[members[-1].position].index
    where = words.steps(first, last)
    if kind == "wait":
        reasons = dict.fromkeys(words.because(moment.reason) for moment in members)
        return f"waited {where} {words.listed(list(reasons))}"
    if kind == "prefill":
        chunk = members[0]
        return (
            f"{words.count(chunk.num_tokens, 'prompt token')} from position {chunk.start} {where}"
        )
    number = sum(life.steps[moment.position].plan.chain_length for moment in members)
    return f"decoded {words.count(number, 'token')} {where}"


def _merge(lane: Lane, axis: TimeAxis, narrowest: float) -> Lane:
    """The lane with neighbours drawn as one where they are narrower than so many pixels."""
    merged: list[Segment] = []
    for segment in lane.segments:
        before = merged[-1] if merged else None
        if before is None or axis.x(segment.end) - axis.x(before.start) >= narrowest:
            merged.append(segment)
            continue
        longer = max(before, segment, key=lambda s: s.end - s.start)
        tooltip = f"request {lane.request_id}: several stretches, mostly {longer.kind}"
        merged[-1] = replace(longer, start=before.start, end=segment.end, tooltip=tooltip)
    return replace(lane, segments=tuple(merged))


def _short(request_id: str) -> str:
    return request_id if len(request_id) <= 8 else f"{request_id[:7]}…"

"""Seconds to pixels: a straight line, but for the hours in which nothing ran."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from fastgen_jax.observe.records import StepRecord

_BREAK_PX = 26.0
_TICK_PX = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of time, from ``start`` to ``end``, at pixels ``left`` to ``right``."""

    start: float
    end: float
    left: float
    right: float
    is_idle: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeAxis:
    """Where moments lie in a picture; long idle times are cut short.

    Attributes:
        pieces: stretches one after the other, at least one.
    """

    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, steps: Sequence[StepRecord], left: float, right: float) -> TimeAxis:
        """An axis from the first step's start to the last end that is known."""
        stretches = _stretches(steps)
        num_idle = sum(is_idle for _, _, is_idle in stretches)
        busy = sum(end - start for start, end, is_idle in stretches if not is_idle)
        scale = (right - left - num_idle * _BREAK_PX) / busy if busy > 0 else 0.0
        pieces: list[Piece] = []
        for start, end, is_idle in stretches:
            width = _BREAK_PX if is_idle else scale * (end - start)
            pieces.append(
                Piece(start=start, end=end, left=left, right=left + width, is_idle=is_idle)
            )
            left += width
        return cls(pieces=tuple(pieces))

    @property
    def start(self) -> float:
        """The first moment."""
        return self.pieces[0].start

    @property
    def end(self) -> float:
        """The last moment."""
        return self.pieces[-1].end

    @property
    def left(self) -> float:
        """The first pixel."""
        return self.pieces[0].left

    @property
    def right(self) -> float:
        """The last pixel."""
        return self.pieces[-1].right

    def x(self, time: float) -> float:
        """The pixel of a moment; beyond the ends, the end's."""
        time = min(max(time, self.start), self.end)
        starts = [piece.start for piece in self.pieces]
        piece = self.pieces[max(bisect_right(starts, time) - 1, 0)]
        span = piece.end - piece.start
        share = (time - piece.start) / span if span > 0 else 0.0
        return piece.left + share * (piece.right - piece.left)

    def ticks(self) -> list[tuple[float, str]]:
        """Pixels and labels of round times since the start, in seconds or milliseconds."""
        scale = max(
            ((p.right - p.left) / (p.end - p.start) for p in self.pieces if p.end > p.start),
            default=0.0,
        )
        if not scale:
            return [(self.left, "0")]
        every = _round_up(_TICK_PX / scale)
        digits = max(0, -math.floor(math.log10(every) + 1e-9))
        found: list[tuple[float, str]] = []
        for piece in self.pieces:
            if piece.is_idle:
                continue
            number = math.ceil((piece.start - self.start) / every - 1e-9)
            while (time := self.start + number * every) <= piece.end + 1e-9 * every:
                x = self.x(time)
                if not found or x - found[-1][0] > _TICK_PX / 2:
                    found.append((x, f"{number * every:.{digits}f}"))
                number += 1
        return found


def _stretches(steps: Sequence[StepRecord]) -> list[tuple[float, float, bool]]:
    """Times with work and long ones without, in turn."""
    ends = [step.start if math.isnan(step.end) else step.end for step in steps]
    durations = [end - step.start for step, end in zip(steps, ends, strict=True)]
    idle = max(0.03 * sum(durations), 3 * median(durations))
    start = steps[0].start
    found: list[tuple[float, float, bool]] = []
    for step, end in zip(steps[1:], ends, strict=False):
        if step.start - end > idle and end > start:
            found += [(start, end, False), (end, step.start, True)]
            start = step.start
    return [*found, (start, max(ends), False)]


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, …, at any scale."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * 0.999)

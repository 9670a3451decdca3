"""What each step's places were used for, as stacked bars over time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastgen_jax.markup import Markup, element
from fastgen_jax.observe import words
from fastgen_jax.observe.drawing import group, line, rect, text
from fastgen_jax.observe.records import StepRecord
from fastgen_jax.observe.time_axis import TimeAxis

HEIGHT = 150.0
_NARROWEST = 1.6  # pixels; narrower steps are drawn together


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One step, or neighbours too narrow to be told apart; tokens are means over their time.

    Attributes:
        steps: those it stands for.
        left, width: in pixels.
        decode, prefill, padding: tokens of one step, together the shape's.
    """

    steps: tuple[StepRecord, ...]
    left: float
    width: float
    decode: float
    prefill: float
    padding: float

    @property
    def shape(self) -> float:
        """Places of the compiled shape."""
        return self.decode + self.prefill + self.padding

    @property
    def tooltip(self) -> str:
        """What it stands for, in words."""
        first, last = self.steps[0], self.steps[-1]
        if first is not last:
            took = words.seconds(last.end - first.start)
            return (
                f"steps {first.index} to {last.index}: {took}, on average\n"
                f"{self.decode:,.1f} decode, {self.prefill:,.1f} prefill, "
                f"{self.padding:,.1f} padding tokens"
            )
        plan = first.plan
        chain = f", a chain of {plan.chain_length}" if plan.chain_length > 1 else ""
        lines = [
            f"step {first.index}: {words.seconds(first.seconds)}{chain}",
            f"{plan.num_decode_tokens:,} decode, {first.num_prefill_tokens:,} prefill",
            f"and {first.num_padding_tokens:,} padding tokens",
            f"{len(plan.rows):,} rows; shape {first.shape.num_tokens} × {first.shape.num_rows}",
            f"{plan.num_waiting:,} waiting, {plan.num_free_blocks:,} blocks free",
            *_whys(first),
        ]
        return "\n".join(lines)


def bars(steps: Sequence[StepRecord], axis: TimeAxis) -> list[Bar]:
    """A bar for each step that ran and was read; neighbours share one where they are narrow."""
    return [_bar(members, axis) for members in _grouped(steps, axis)]


def draw_budget(found: Sequence[Bar], axis: TimeAxis, top: float) -> Markup:
    """The bars and their axis of tokens, from ``top`` down."""
    most = max((bar.shape for bar in found), default=1.0)
    scale = HEIGHT / most
    bottom = top + HEIGHT
    shapes = [_draw(bar, bottom, scale) for bar in found]
    grid: list[Markup] = []
    for value in _levels(most):
        y = bottom - scale * value
        grid.append(line("fg-grid", axis.left, y, axis.right, y))
        grid.append(text(f"{value:,}", axis.left - 6, y + 4, anchor="end"))
    return element("g", *grid, *shapes)


def _draw(bar: Bar, bottom: float, scale: float) -> Markup:
    shapes: list[Markup] = []
    y = bottom
    for kind in ("decode", "prefill", "padding"):
        height = scale * getattr(bar, kind)
        if height > 0:
            y -= height
            shapes.append(rect(f"fg-{kind}", bar.left, y, bar.width, height))
    outline = rect("fg-shape", bar.left, y, bar.width, bottom - y)
    # Among narrow bars outlines would be all that is seen.
    edge = line("fg-shape", bar.left, y, bar.left + bar.width, y)
    shapes.append(outline if bar.width > 4 else edge)
    return group(bar.tooltip, *shapes, kind="fg-bar")


def _grouped(steps: Sequence[StepRecord], axis: TimeAxis) -> Iterator[tuple[StepRecord, ...]]:
    members: list[StepRecord] = []
    for step in steps:
        if step.plan.is_empty or math.isnan(step.end):
            continue
        # Nothing is drawn across a time without work.
        if members and axis.x(step.start) - axis.x(members[-1].end) > 1:
            yield tuple(members)
            members = []
        members.append(step)
        if axis.x(step.end) - axis.x(members[0].start) >= _NARROWEST:
            yield tuple(members)
            members = []
    if members:
        yield tuple(members)


def _bar(members: tuple[StepRecord, ...], axis: TimeAxis) -> Bar:
    weights = [step.seconds for step in members]
    total = sum(weights)
    if total <= 0:
        weights, total = [1.0] * len(members), float(len(members))

    def mean(values: list[int]) -> float:
        return sum(w * v for w, v in zip(weights, values, strict=True)) / total

    left = axis.x(members[0].start)
    return Bar(
        steps=members,
        left=left,
        width=axis.x(members[-1].end) - left,
        decode=mean([step.plan.num_decode_tokens for step in members]),
        prefill=mean([step.num_prefill_tokens for step in members]),
        padding=mean([step.num_padding_tokens for step in members]),
    )


def _whys(step: StepRecord) -> list[str]:
    reasons: dict[str, int] = {}
    for _, reason in step.plan.waits:
        text_of = words.REASON_WORDS[reason]
        reasons[text_of] = reasons.get(text_of, 0) + 1
    lines = [f"{number:,} left out: {why}" for why, number in reasons.items()]
    if step.plan.preempted:
        ids = [victim.request_id for victim, _ in step.plan.preempted]
        lines.append(f"preempted {words.named(ids)}")
    return lines


def _levels(most: float) -> list[int]:
    """Up to five round numbers of tokens, 0 among them."""
    power = 10 ** max(math.floor(math.log10(most)) - 1, 0)
    every = next(factor * power for factor in (1, 2, 5, 10, 20, 50) if most <= 4.5 * factor * power)
    return list(range(0, int(most) + 1, every))

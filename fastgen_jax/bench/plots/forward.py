"""Latency and FLOP/s of single steps over their tokens, as in section 3 of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastgen_jax.bench.plots.figure import finish_axes, new_figure
from fastgen_jax.bench.results import BenchResults, TimedStep
from fastgen_jax.bench.spread import Spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "osD^vP*X"


def draw_forward(results: Sequence[BenchResults]) -> Figure:
    """Medians joined, with bands from the fastest to the slowest time of a step."""
    figure = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2)
    curves = [(label, steps) for one in results for label, steps in _by_rows(one, len(results))]
    most = max(step.flops / Spread.of(step.seconds).median for _, steps in curves for step in steps)
    scale, unit = (1e-12, "TFLOP/s") if most >= 1e12 else (1e-9, "GFLOP/s")
    for number, (label, steps) in enumerate(curves):
        spreads = [Spread.of(step.seconds) for step in steps]
        tokens = [step.num_tokens for step in steps]
        style = {"color": f"C{number % 10}", "marker": _MARKERS[number % len(_MARKERS)]}
        left.plot(
            tokens, [1e3 * s.median for s in spreads], label=label, markersize=4, lw=1.4, **style
        )
        left.fill_between(
            tokens,
            [1e3 * s.low for s in spreads],
            [1e3 * s.high for s in spreads],
            color=f"C{number % 10}",
            alpha=0.15,
            linewidth=0,
        )
        pairs = list(zip(steps, spreads, strict=True))
        rates = [scale * step.flops / s.median for step, s in pairs]
        right.plot(tokens, rates, label=label, markersize=4, lw=1.4, **style)
        right.fill_between(
            tokens,
            [scale * step.flops / s.high for step, s in pairs],
            [scale * step.flops / s.low for step, s in pairs],
            color=f"C{number % 10}",
            alpha=0.15,
            linewidth=0,
        )
    left.set(xlabel="tokens of the step", ylabel="latency, ms", title="Latency of a step")
    right.set(xlabel="tokens of the step", ylabel=unit, title="Rate of useful FLOPs")
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        finish_axes(axes, legend=axes is left)
    return figure


def _by_rows(one: BenchResults, num_files: int) -> list[tuple[str, list[TimedStep]]]:
    """The steps by their number of prompts, each in the order of tokens."""
    counts = sorted({step.num_rows for step in one.steps})
    found: list[tuple[str, list[TimedStep]]] = []
    for count in counts:
        steps = [step for step in one.steps if step.num_rows == count]
        words = f"{count} prompt" + ("s" if count > 1 else "")
        label = words if num_files == 1 else f"{one.label}, {words}"
        found.append((label, sorted(steps, key=lambda step: step.num_tokens)))
    return found

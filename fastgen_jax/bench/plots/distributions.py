"""How waiting times are distributed: every one of a run, as cumulative curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from fastgen_jax.bench.plots.figure import Series, finish_axes, new_figure
from fastgen_jax.bench.results import Point
from fastgen_jax.bench.rounds import Rounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = ("-", "--", "-.", ":")
_TICKS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
Values = Float64[np.ndarray, "N"]


def draw_token_latency(series: Sequence[Series]) -> Figure:
    """The times between tokens, of all requests, the first token's wait left out."""
    return _draw(series, _gaps, "time between tokens, ms", "Time between tokens")


def draw_ttft(series: Sequence[Series]) -> Figure:
    """The waits for first tokens; a curve that ends below 1 has requests that never got one."""
    return _draw(series, _ttfts, "time to the first token, ms", "Time to the first token")


def _gaps(point: Point) -> Values:
    gaps = [record.gaps for record in point.records]
    return np.concatenate(gaps) if gaps else np.empty(0)


def _ttfts(point: Point) -> Values:
    return np.array([record.ttft for record in point.records], float)


def _draw(
    series: Sequence[Series], values: Callable[[Point], Values], xlabel: str, title: str
) -> Figure:
    """A curve for each point, all its rounds together; loads by colour where there are several."""
    figure = new_figure(7.6, 4.8)
    axes = figure.subplots()
    for label, color, line, group in _curves(series):
        found = np.concatenate([values(point) for point in group.points])
        finite = np.sort(found[np.isfinite(found)])
        if not len(finite):
            continue
        missing = len(found) - len(finite)
        if missing:
            label += f" ({missing} never)"
        shares = np.arange(1, len(finite) + 1) / len(found)
        axes.step(
            1e3 * np.concatenate((finite[:1], finite)),
            np.concatenate(([0.0], shares)),
            where="post",
            color=color,
            linestyle=line,
            linewidth=1.3,
            label=label,
        )
    if axes.lines:
        smallest = min(np.min(line.get_xdata()) for line in axes.lines)  # pyright: ignore
        if smallest > 0:
            axes.set_xscale("log")
        else:  # tokens of one message come at once
            axes.set_xscale("symlog", linthresh=1.0, linscale=0.4)
            axes.set_xlim(left=0)
    axes.set_yticks(_TICKS)
    axes.set(xlabel=xlabel, ylabel="share of all", title=title, ylim=(0, 1.01))
    axes.xaxis.set_major_formatter("{x:g}")
    finish_axes(axes, legend=False)
    if axes.lines:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _curves(series: Sequence[Series]) -> Iterator[tuple[str, object, str, Rounds]]:
    """Label, colour, line and point of each curve.

    Of several points, the load is the colour, from dark to light, and the series the line.
    """
    from matplotlib import colormaps

    if all(len(one.groups) == 1 for one in series):
        for one in series:
            yield one.label, f"C{one.number % 10}", "-", one.groups[0]
        return
    loads = {group.load for one in series for group in one.groups}
    known = sorted(load for load in loads if load is not None) or [0.0]
    colors = colormaps["viridis"](np.linspace(0.0, 0.88, len(known)))
    for one in series:
        line = _LINES[one.number % len(_LINES)]
        for group in one.groups:
            place = 0 if group.load is None else known.index(group.load)
            load = group.name.removesuffix(f", {group.setting}") if group.setting else group.name
            label = load if len(series) == 1 else f"{one.label}, {load}"
            yield label, colors[place], line, group

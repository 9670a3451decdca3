"""Curves over load: throughput and latency, effective throughput, and scaling over devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fastgen_jax.bench.plots.figure import Series, finish_axes, new_figure
from fastgen_jax.bench.results import Point
from fastgen_jax.bench.rounds import Rounds
from fastgen_jax.bench.sla import ServiceLevel, effective_throughput
from fastgen_jax.bench.spread import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZES = "tensor_parallel_size"


def draw_throughput_latency(series: Sequence[Series]) -> Figure:
    """Mean latency of whole requests over throughput, the points joined in the order of load.

    Each point is named by its load. Crosses reach over the rounds, where there are several.
    """
    figure = new_figure(7, 4.6)
    axes = figure.subplots()
    for one in series:
        rates = [group.spread(_requests_per_second) for group in one.groups]
        latencies = [group.spread(_mean_latency) for group in one.groups]
        _line(axes, one, rates, latencies)
        for group, rate, latency in zip(one.groups, rates, latencies, strict=True):
            if group.load is not None and math.isfinite(latency.median):
                axes.annotate(
                    f"{group.load:g}",
                    (rate.median, latency.median),
                    xytext=(5, 5),
                    textcoords="offset points",
                    fontsize="x-small",
                    color=f"C{one.number % 10}",
                )
    axes.set(
        xlabel="throughput, complete requests per second",
        ylabel="mean latency of a request, s",
        title=f"Latency over throughput ({_load_words(series)} at each point)",
    )
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    finish_axes(axes)
    return figure


def draw_effective_throughput(series: Sequence[Series], levels: Sequence[ServiceLevel]) -> Figure:
    """Requests per second that kept each service level, over load; all requests dotted."""
    figure = new_figure(4 * len(levels), 4.2)
    panels = figure.subplots(1, len(levels), sharey=True, squeeze=False)[0]
    for axes, level in zip(panels, levels, strict=True):
        for one in series:
            groups = [group for group in one.groups if group.load is not None]
            loads = [float(group.load or 0) for group in groups]
            spreads = [group.spread(_effective(level)) for group in groups]
            _band(axes, one, loads, spreads, one.label)
            every = [group.spread(_requests_per_second).median for group in groups]
            axes.plot(loads, every, color=f"C{one.number % 10}", linestyle=":", linewidth=1)
        axes.set(xlabel=_load_words(series), title=f"at {level.token_rate:g} tokens per second")
        axes.set_ylim(bottom=0)
        finish_axes(axes, legend=axes is panels[0])
    panels[0].set_ylabel("requests per second")
    figure.suptitle(
        f"Effective throughput: first token within prompt/{levels[0].prompt_rate:g} s, then the "
        "pace kept (dotted: all requests)",
        fontsize="medium",
    )
    return figure


def draw_scaling(series: Sequence[Series]) -> Figure:
    """Throughput over devices, relative to the fewest, a line for each load; ideal dashed."""
    figure = new_figure(6.4, 4.6)
    axes = figure.subplots()
    number = 0
    for name, groups in _by_load(series).items():
        sizes = [int(group.parameters[_SIZES]) for group in groups]
        rates = [group.spread(_requests_per_second) for group in groups]
        base = rates[0].median
        if not base:
            continue
        scaled = [
            Spread(median=r.median / base, low=r.low / base, high=r.high / base, count=r.count)
            for r in rates
        ]
        one = Series(label=name, number=number, groups=tuple(groups))
        _band(axes, one, [float(size) for size in sizes], scaled, name)
        number += 1
    sizes = sorted(_device_counts(series))
    ideal = [size / sizes[0] for size in sizes]
    axes.plot(sizes, ideal, color="0.5", linestyle="--", linewidth=1, label="ideal")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set(
        xlabel="devices",
        ylabel=f"throughput, times that of {sizes[0]}",
        title="Scaling over devices",
    )
    axes.set_ylim(bottom=0)
    finish_axes(axes)
    return figure


def has_scaling(series: Sequence[Series]) -> bool:
    """Whether the number of devices was swept."""
    return len(_device_counts(series)) > 1


def _device_counts(series: Sequence[Series]) -> set[int]:
    groups = (group for one in series for group in one.groups)
    return {int(group.parameters[_SIZES]) for group in groups if _SIZES in group.parameters}


def _by_load(series: Sequence[Series]) -> dict[str, list[Rounds]]:
    """Points that differ in their number of devices alone, by what they have in common."""
    found: dict[str, list[Rounds]] = {}
    for one in series:
        for group in one.groups:
            if _SIZES not in group.parameters:
                continue
            rest = {name: value for name, value in group.parameters.items() if name != _SIZES}
            file = one.label.removesuffix(f", {group.setting}") if group.setting else one.label
            name = Rounds(parameters=rest, points=group.points).name
            found.setdefault(f"{file}, {name}", []).append(group)
    return {
        name: sorted(groups, key=lambda group: group.parameters[_SIZES])
        for name, groups in found.items()
        if len(groups) > 1
    }


def _line(axes: Axes, one: Series, xs: Sequence[Spread], ys: Sequence[Spread]) -> None:
    """Medians joined, with crosses from the lowest to the highest round."""
    axes.errorbar(
        [x.median for x in xs],
        [y.median for y in ys],
        xerr=[[x.median - x.low for x in xs], [x.high - x.median for x in xs]],
        yerr=[[_between(y.low, y.median) for y in ys], [_between(y.median, y.high) for y in ys]],
        label=one.label,
        linewidth=1.4,
        markersize=4.5,
        elinewidth=0.8,
        capsize=2 if any(x.count > 1 for x in xs) else 0,
        **one.style,
    )


def _band(
    axes: Axes, one: Series, xs: Sequence[float], spreads: Sequence[Spread], label: str
) -> None:
    """Medians joined, with a band from the lowest to the highest round."""
    medians = [spread.median for spread in spreads]
    axes.plot(xs, medians, label=label, linewidth=1.4, markersize=4.5, **one.style)
    if any(spread.count > 1 for spread in spreads):
        lows, highs = [s.low for s in spreads], [s.high for s in spreads]
        axes.fill_between(xs, lows, highs, color=f"C{one.number % 10}", alpha=0.15, linewidth=0)


def _between(low: float, high: float) -> float:
    return high - low if math.isfinite(low) and math.isfinite(high) else 0.0


def _load_words(series: Sequence[Series]) -> str:
    names = {name for one in series for group in one.groups for name in group.parameters}
    words = [word for name, word in _LOAD_WORDS.items() if name in names]
    return " or ".join(words) or "load"


_LOAD_WORDS = {"clients": "clients", "rate": "requests sent per second"}


def _requests_per_second(point: Point) -> float:
    return point.summary.requests_per_second


def _mean_latency(point: Point) -> float:
    """Of all requests; infinite where one never got a token."""
    found = point.summary.latency
    return math.inf if found is None else found.mean


def _effective(level: ServiceLevel) -> Callable[[Point], float]:
    return lambda point: effective_throughput(point.records, level).effective

"""The measured curves of each policy, and the simulated ones behind them, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine_turns import note
from benchmarks.policy_points import Run
from benchmarks.policy_setups import POLICIES, Setup
from fastgen_jax.bench.spread import Spread

_COLORS = {name: f"C{index}" for index, name in enumerate(POLICIES)}


def draw(directory: Path, setups: Sequence[Setup], runs: Sequence[Run]) -> None:
    """Effective throughput, P95 between tokens and latency; bars reach from lowest to highest."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        note("no plots: matplotlib isn't installed; it comes with fastgen-jax[bench]")
        return
    figure = Figure(figsize=(13, 4 * len(setups)), layout="constrained")
    grid = figure.subplots(len(setups), 3, squeeze=False)
    for row, setup in zip(grid, setups, strict=True):
        mine = [run for run in runs if run.setup == setup.name]
        _curves(row[0], mine, by_clients, "effective")
        row[0].set(xlabel="clients", ylabel="effective requests/s", ylim=(0, None))
        _curves(row[1], mine, by_clients, "gap_p95", scale=1e3)
        row[1].set(xlabel="clients", ylabel="P95 between tokens, ms", yscale="log")
        row[1].axhline(1e3 / setup.level.token_rate, color="gray", linestyle=":", linewidth=1)
        _curves(row[2], mine, by_rate, "latency_mean")
        row[2].set(xlabel="requests/s", ylabel="mean latency, s", ylim=(0, None))
        for axes, title in zip(
            row, ("within the service level", "tail", "throughput and latency"), strict=True
        ):
            axes.set_title(f"{setup.name}: {title}")
            axes.grid(alpha=0.3)
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "policies"}):
        figure.savefig(directory / "policy_comparison.svg", metadata={"Date": None})


def by_clients(runs: Sequence[Run], simulated: bool) -> float:
    """Where the points of so many clients stand."""
    return runs[0].clients


def by_rate(runs: Sequence[Run], simulated: bool) -> float:
    """At their own throughput."""
    points = (run.simulated if simulated else run.measured for run in runs)
    return Spread.of([point.rate for point in points]).median


def _curves(
    axes: Any,
    runs: Sequence[Run],
    place: Callable[[Sequence[Run], bool], float],
    name: str,
    scale: float = 1.0,
) -> None:
    for policy in dict.fromkeys(run.policy for run in runs):
        groups = [
            [run for run in runs if run.policy == policy and run.clients == clients]
            for clients in sorted({run.clients for run in runs})
        ]
        spreads = [
            Spread.of([scale * getattr(run.measured, name) for run in group]) for group in groups
        ]
        axes.errorbar(
            [place(group, False) for group in groups],
            [spread.median for spread in spreads],
            yerr=[
                [spread.median - spread.low for spread in spreads],
                [spread.high - spread.median for spread in spreads],
            ],
            color=_COLORS[policy],
            marker="o",
            markersize=4,
            capsize=2,
            label=POLICIES[policy],
        )
        axes.plot(
            [place(group, True) for group in groups],
            [
                Spread.of([scale * getattr(run.simulated, name) for run in group]).median
                for group in groups
            ],
            color=_COLORS[policy],
            linestyle="--",
            linewidth=1,
            label=f"{POLICIES[policy]}, simulated",
        )

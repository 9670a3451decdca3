"""The simulated curves beside the paper's points, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine_turns import note
from benchmarks.paper_figures import CLIENTS, CURVES, EFFECTIVE, ENGINES

_COLORS = {"fastgen": "C0", "vllm": "C1"}
_POLICIES = {"fastgen": "SplitFuse", "vllm": "vLLM-2023"}

type Curves = Mapping[str, Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]]


def draw(directory: Path, curves: Curves) -> None:
    """Latency over throughput, and effective throughput over clients; nothing is fitted or sorted.

    ``curves``: costs, setup, engine -> points by clients.
    """
    try:
        from matplotlib import rc_context  # pyright: ignore[reportMissingImports]
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError:
        note("no plots: matplotlib isn't installed; it comes with fastgen-jax[plan]")
        return
    for name, draw_one in (("latency", _latency), ("effective", _effective)):
        figure = Figure(figsize=(10, 4 * len(curves)), layout="constrained")
        draw_one(figure, curves)
        path = directory / f"paper_simulation_{name}.svg"
        # Text as text: a tenth of the size of drawn letters.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
            figure.savefig(path, metadata={"Date": None})


def _latency(figure: Any, curves: Curves) -> None:
    grid = figure.subplots(len(curves), 2)
    for row, (costs, setups) in zip(grid, curves.items(), strict=True):
        for axes, (setup, engines) in zip(row, setups.items(), strict=True):
            for engine, points in engines.items():
                label, color = _POLICIES[engine], _COLORS[engine]
                rates = [point["clients_over_latency"] for point in points]
                latencies = [point["latency"]["mean"] for point in points]
                axes.plot(rates, latencies, color=color, marker=".", label=f"{label}, simulated")
                prompt, output = setup.split("/")
                paper = CURVES[(int(prompt), int(output)), engine]
                axes.plot(
                    [point.requests_per_second for point in paper],
                    [point.latency for point in paper],
                    color=color,
                    marker="x",
                    linestyle="none",
                    label=f"{label}, paper",
                )
            axes.set(
                xlabel="requests per second (clients / mean latency)",
                ylabel="mean latency, s",
                title=f"{setup}, {costs} costs, 1 to 32 clients",
                ylim=(0, None),
            )
            axes.legend()


def _effective(figure: Any, curves: Curves) -> None:
    rates = sorted({rate for _, rate in EFFECTIVE})
    grid = figure.subplots(len(curves), len(rates), sharey="row")
    for row, (costs, setups) in zip(grid, curves.items(), strict=True):
        for axes, rate in zip(row, rates, strict=True):
            for engine in ENGINES:
                label, color = _POLICIES[engine], _COLORS[engine]
                points = setups["2600/60"][engine]
                found = [point["effective"][str(rate)]["effective"] for point in points]
                axes.plot(CLIENTS, found, color=color, marker=".", label=f"{label}, simulated")
                paper = EFFECTIVE[engine, rate]
                axes.plot(
                    CLIENTS, paper, color=color, linestyle=":", marker="x", label=f"{label}, paper"
                )
            axes.set(xlabel="clients", title=f"{costs} costs, {rate} tokens/s")
            axes.legend(fontsize="x-small")
        row[0].set_ylabel("effective requests per second")

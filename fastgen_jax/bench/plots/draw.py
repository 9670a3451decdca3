"""All plots that results have the numbers for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastgen_jax.bench.plots.curves import (
    draw_effective_throughput,
    draw_scaling,
    draw_throughput_latency,
    has_scaling,
)
from fastgen_jax.bench.plots.distributions import draw_token_latency, draw_ttft
from fastgen_jax.bench.plots.figure import save_figure, series_of
from fastgen_jax.bench.plots.forward import draw_forward
from fastgen_jax.bench.results import BenchResults


def draw_results(results: Sequence[BenchResults], directory: Path) -> list[Path]:
    """The files that were drawn: several results lie over each other in the same plots.

    Distributions of every run, curves over load where there are several loads, steps by their
    tokens, and scaling where the number of devices was swept. The first file says which service
    levels count.
    """
    figures = {}
    series = series_of(results)
    if series:
        figures["token_latency_cdf"] = draw_token_latency(series)
        figures["ttft_cdf"] = draw_ttft(series)
    has_curve = len({group.load for one in series for group in one.groups} - {None}) > 1
    if has_curve:
        figures["throughput_latency"] = draw_throughput_latency(series)
    if has_curve and results[0].token_rates:
        figures["effective_throughput"] = draw_effective_throughput(
            series, results[0].service_levels
        )
    if has_scaling(series):
        figures["scaling"] = draw_scaling(series)
    timed = [one for one in results if one.steps]
    if timed:
        figures["forward"] = draw_forward(timed)
    return [
        path for name, figure in figures.items() for path in save_figure(figure, directory, name)
    ]

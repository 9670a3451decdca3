"""Plots are drawn of whatever was measured; a warning of matplotlib would be an error."""

from __future__ import annotations

import builtins
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastgen_jax.bench.plots.curves import draw_scaling, draw_throughput_latency, has_scaling
from fastgen_jax.bench.plots.distributions import draw_ttft
from fastgen_jax.bench.plots.draw import draw_results
from fastgen_jax.bench.plots.figure import check_matplotlib, save_figure, series_of
from fastgen_jax.errors import ConfigError
from tests.bench.test_results import exchange, results

SWEEP = results(steps=())
ALL_FAILED = tuple(exchange(number, error="no") for number in range(3))


def names(paths: list[Path]) -> set[str]:
    assert all(path.stat().st_size > 1000 for path in paths)
    assert {path.suffix for path in paths} == {".png", ".svg"}
    return {path.stem for path in paths}


@pytest.fixture(scope="module")
def sweep_plots(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The plots of three files over each other, in a directory that is made for them."""
    other = replace(SWEEP, label="another")
    return draw_results([SWEEP, other, other], tmp_path_factory.mktemp("plots") / "new")


def test_a_sweep_has_curves_and_distributions(sweep_plots: list[Path]) -> None:
    drawn = names(sweep_plots)
    curves = {"throughput_latency", "effective_throughput"}
    assert drawn == curves | {"token_latency_cdf", "ttft_cdf"}


def test_one_load_has_no_curve(tmp_path: Path) -> None:
    one = replace(SWEEP, command="load", points=SWEEP.points[:1])
    assert names(draw_results([one], tmp_path)) == {"token_latency_cdf", "ttft_cdf"}


def test_steps_have_a_plot_of_their_own(tmp_path: Path) -> None:
    steps = results(command="forward", points=()).steps
    both = tuple(replace(steps[0], num_tokens=size, num_rows=1) for size in (1, 64)) + steps
    forward = results(command="forward", points=(), steps=both)
    assert names(draw_results([forward, forward], tmp_path)) == {"forward"}


def test_several_files_lie_over_each_other(sweep_plots: list[Path]) -> None:
    text = next(p for p in sweep_plots if p.name == "throughput_latency.svg").read_text()
    for label in ("a model, fcfs", "another, fcfs", "another (2), fcfs"):
        assert f">{label}<" in text
    for unit in ("requests per second", ", s<"):
        assert unit in text


def test_the_same_results_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        figure = draw_throughput_latency(series_of([SWEEP]))
        save_figure(figure, tmp_path / name, "plot")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_spread_over_rounds_is_in_the_curve() -> None:
    points = list(SWEEP.points)
    slower = tuple(exchange(number) for number in (1, 0, 9))
    points[2] = replace(points[2], exchanges=slower)  # another round of the first
    series = series_of([replace(SWEEP, points=tuple(points))])
    spread = series[0].groups[0].spread(lambda point: point.summary.requests_per_second)
    assert spread.low < spread.median < spread.high
    assert draw_throughput_latency(series).axes[0].containers, "errorbars"


def test_those_without_a_token_are_named_and_keep_the_curve_below_one() -> None:
    axes = draw_ttft(series_of([replace(SWEEP, points=SWEEP.points[:2])])).axes[0]
    for line in axes.lines:
        assert line.get_ydata()[-1] == pytest.approx(2 / 3)  # type: ignore[index]
        assert str(line.get_label()).endswith("(1 never)")


def test_a_run_in_which_everything_failed_is_drawn_as_nothing(tmp_path: Path) -> None:
    points = tuple(replace(point, exchanges=ALL_FAILED) for point in SWEEP.points)
    series = series_of([replace(SWEEP, points=points)])
    save_figure(draw_ttft(series), tmp_path, "ttft")
    save_figure(draw_throughput_latency(series), tmp_path, "curve")
    assert not draw_ttft(series).axes[0].lines


def test_scaling_is_relative_to_the_fewest_devices() -> None:
    points = tuple(
        replace(
            point,
            parameters={"clients": 1, "tensor_parallel_size": size},
            exchanges=tuple(exchange(number) for number in range(size)),
            round=0,
        )
        for point, size in zip(SWEEP.points, (1, 2, 4), strict=False)
    )
    swept = replace(SWEEP, points=points)
    series = series_of([swept])
    assert has_scaling(series)
    assert not has_scaling(series_of([SWEEP]))
    axes = draw_scaling(series).axes[0]
    axes.figure.canvas.draw()
    measured, ideal = axes.lines
    assert list(ideal.get_ydata()) == [1, 2, 4]  # type: ignore[call-overload]
    assert measured.get_ydata()[0] == 1  # type: ignore[index]
    assert measured.get_label() == "a model, 1 client"


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=re.escape('pip install "fastgen-jax[bench]"')):
        check_matplotlib()

"""Tables of results: what is in a cell."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from fastgen_jax.bench.commands.tables import print_results
from fastgen_jax.bench.results import BenchResults
from tests.bench.test_results import exchange, results


def printed(measured: BenchResults, width: int = 200) -> str:
    console = Console(width=width, record=True, file=StringIO())
    print_results(measured, console)
    return console.export_text()


def line_of(text: str, title: str) -> str:
    return next(line for line in text.splitlines() if title in line)


def test_a_request_without_a_token_waits_forever() -> None:
    load = results(command="load", steps=())
    text = printed(replace(load, points=load.points[:1]))
    assert "never" in line_of(text, "first token p99")
    assert "never" not in line_of(text, "first token p50")
    assert " 1 " in line_of(text, "failed")


def test_rounds_are_a_median_with_lowest_and_highest() -> None:
    load = results(command="load", steps=())
    first = load.points[0]
    slow = replace(first, exchanges=(exchange(0), exchange(9)), round=1)
    fast = replace(first, exchanges=(exchange(0), exchange(3)), round=2)
    text = printed(replace(load, points=(first, slow, fast)))
    rates = sorted(point.summary.requests_per_second for point in (first, slow, fast))
    shown = f"{rates[1]:.2f} ({rates[0]:.2f}–{rates[2]:.2f})"
    assert shown in line_of(text, "requests/s")


def test_a_sweep_fits_into_a_terminal() -> None:
    text = printed(results(steps=()), width=80)
    assert "…" not in text
    assert "sweep: a model, fcfs" in text
    for level in ("2", "4", "6"):
        assert level in text


def test_service_levels_are_those_of_the_results() -> None:
    load = results(command="load", steps=(), token_rates=(3.0,), prompt_rate=64.0)
    text = printed(load)
    assert "effective at 3 tokens/s" in text
    assert "effective at 2 tokens/s" not in text


def test_what_a_server_does_not_tell_is_no_line() -> None:
    load = results(command="load", steps=())
    points = tuple(replace(point, engine=None) for point in load.points[:1])
    assert "requests/s" in printed(replace(load, points=points))
    assert "preemptions" not in printed(replace(load, points=points))


def test_steps_have_their_rate() -> None:
    steps = results(command="forward", points=()).steps
    timed = replace(steps[0], flops=3 * 10**9, seconds=(0.5, 0.4, 2.0))
    line = line_of(printed(results(command="forward", points=(), steps=(timed,))), "8x8")
    assert [float(word) for word in line.replace("│", " ").split() if "x" not in word] == (
        pytest.approx([4, 2, 500.0, 400.0, 2000.0, 6.0])
    )

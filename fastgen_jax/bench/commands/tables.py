"""What the bench commands print at their end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from fastgen_jax.bench.results import BenchResults, Point, TimedStep
from fastgen_jax.bench.rounds import LOADS, Rounds, group_rounds
from fastgen_jax.bench.sla import ServiceLevel, effective_throughput
from fastgen_jax.bench.spread import Spread
from fastgen_jax.bench.summary import Percentiles

PickTimes = Callable[[Point], Percentiles | None]


@dataclass(frozen=True, slots=True)
class Metric:
    """A number of a point; ``of`` gives None where it has none."""

    title: str
    of: Callable[[Point], float | None]
    digits: int = 2


def _milliseconds(pick: PickTimes, name: str) -> Callable[[Point], float | None]:
    def value(point: Point) -> float | None:
        found = pick(point)
        return None if found is None else 1e3 * getattr(found, name)

    return value


def _times(title: str, pick: PickTimes, *names: str) -> list[Metric]:
    return [Metric(f"{title} {name}, ms", _milliseconds(pick, name), 1) for name in names]


def _engine(name: str) -> Callable[[Point], float | None]:
    return lambda point: None if point.engine is None else float(point.engine[name])


def _input_rate(point: Point) -> float:
    records = [record for record in point.records if record.is_complete]
    return sum(record.num_prompt_tokens for record in records) / point.seconds


def _output_rate(point: Point) -> float:
    return sum(record.num_output_tokens for record in point.records) / point.seconds


def _padding(point: Point) -> float | None:
    if point.engine is None:
        return None
    places = point.engine["num_step_tokens"] + point.engine["num_padding_tokens"]
    return 100 * point.engine["num_padding_tokens"] / places if places else 0.0


def _decodes(point: Point) -> float | None:
    if point.engine is None or not point.engine["num_step_tokens"]:
        return None
    return 100 * point.engine["num_decode_tokens"] / point.engine["num_step_tokens"]


def _tokens_per_step(point: Point) -> float | None:
    if point.engine is None or not point.engine["num_steps"]:
        return None
    return point.engine["num_step_tokens"] / point.engine["num_steps"]


def _cached(point: Point) -> float | None:
    if point.engine is None or not point.engine["num_queried_tokens"]:
        return None
    return 100 * point.engine["num_hit_tokens"] / point.engine["num_queried_tokens"]


def _mean_latency(point: Point) -> float | None:
    found = point.summary.latency
    return None if found is None else found.mean


_FAILED = Metric("failed", lambda point: point.summary.num_failed, 0)
_REQUESTS = Metric("requests/s", lambda point: point.summary.requests_per_second)
_LATE = Metric("sent late p99, ms", _milliseconds(lambda point: point.lateness, "p99"), 1)
_TTFT = _times("first token", lambda point: point.summary.ttft, "p50", "p95", "p99")
_TPOT = _times("per token (mean)", lambda point: point.summary.tpot, "p50", "p95")
_GAPS = _times(
    "between tokens", lambda point: point.summary.gaps, "p50", "p90", "p95", "p99", "max"
)
_LATENCY = _times("whole request", lambda point: point.summary.latency, "mean", "p95")
_GOODPUT = Metric("goodput under the targets, requests/s", lambda point: point.summary.goodput)
_ENGINE = [
    Metric("tokens per step", _tokens_per_step, 1),
    Metric("of these decodes, %", _decodes, 1),
    Metric("padding of the steps, %", _padding, 1),
    Metric("prompt tokens cached, %", _cached, 1),
    Metric("preemptions", _engine("num_preemptions"), 0),
]

# With titles that fit into a terminal; in ms.
_SWEEP = [
    Metric("req/s", _REQUESTS.of),
    Metric("tok/s", _output_rate, 0),
    Metric("latency\ns", _mean_latency),
    Metric("TTFT\np50", _TTFT[0].of, 0),
    Metric("TTFT\np95", _TTFT[1].of, 0),
    Metric("gap\np50", _GAPS[0].of, 0),
    Metric("gap\np95", _GAPS[2].of, 0),
]

METRICS: dict[str, list[Metric]] = {
    "throughput": [
        _REQUESTS,
        Metric("input tokens/s", _input_rate, 1),
        Metric("output tokens/s", _output_rate, 1),
        *_ENGINE,
        _FAILED,
    ],
    "latency": [*_TTFT, *_TPOT, *_GAPS, *_LATENCY, _FAILED],
    "load": [
        *(_REQUESTS, Metric("output tokens/s", _output_rate, 1)),
        *(*_TTFT, *_TPOT, *_GAPS, *_LATENCY),
        *(_GOODPUT, *_ENGINE, _LATE, _FAILED),
    ],
}


def print_results(results: BenchResults, console: Console | None = None) -> None:
    """A table of the command's numbers: medians over the rounds, with lowest and highest."""
    console = console or Console()
    if results.steps:
        console.print(_steps_table(results.steps, results.label))
        return
    groups = group_rounds(results.points)
    if results.command != "sweep":
        console.print(_points_table(results, groups))
        return
    for setting in dict.fromkeys(group.setting for group in groups):
        own = [group for group in groups if group.setting == setting]
        console.print(_sweep_table(results, setting, own))
        console.print()
    words = "TTFT and gaps between tokens in ms; eff.: effective requests/s at so many tokens/s"
    if any(len(group.points) > 1 for group in groups):
        words += "; medians over the rounds"
    console.print(words, style="dim")


def _points_table(results: BenchResults, groups: Sequence[Rounds]) -> Table:
    """A line for each number, a column for each point."""
    metrics = [*METRICS[results.command]]
    if results.command == "load":
        place = metrics.index(_GOODPUT)
        metrics[place:place] = [_effective(level) for level in results.service_levels]
    table = Table("", *(group.name for group in groups), title=_title(results))
    for metric in metrics:
        if any(metric.of(point) is not None for point in results.points):
            table.add_row(metric.title, *(_cell(metric, group) for group in groups))
    _numbers_to_the_right(table)
    return table


def _sweep_table(results: BenchResults, setting: str, groups: Sequence[Rounds]) -> Table:
    """A line for each load of one setting, as narrow as a terminal."""
    effective = [
        Metric(f"eff.\n{level.token_rate:g}", _effective(level).of)
        for level in results.service_levels
    ]
    metrics = [*_SWEEP, *effective, _FAILED]
    loads = {name for group in groups for name in group.parameters if name in LOADS}
    title = f"{_title(results)}, {setting}" if setting else _title(results)
    table = Table(title=title, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in (", ".join(sorted(loads)), *(metric.title for metric in metrics)):
        table.add_column(name, no_wrap=True)
    for group in groups:
        load = "" if group.load is None else f"{group.load:g}"
        table.add_row(load, *(_cell(metric, group, with_spread=False) for metric in metrics))
    _numbers_to_the_right(table)
    return table


def _title(results: BenchResults) -> str:
    return f"{results.command}: {results.label}"


def _numbers_to_the_right(table: Table) -> None:
    for column in table.columns[1:]:
        column.justify = "right"


def _effective(level: ServiceLevel) -> Metric:
    return Metric(
        f"effective at {level.token_rate:g} tokens/s, requests/s",
        lambda point: effective_throughput(point.records, level).effective,
    )


def _cell(metric: Metric, group: Rounds, *, with_spread: bool = True) -> str:
    values = [value for point in group.points if (value := metric.of(point)) is not None]
    if not values:
        return "–"
    spread = Spread.of(values)
    if spread.count == 1 or not with_spread or not math.isfinite(spread.high):
        return _number(spread.median, metric.digits)
    low, high = (_number(value, metric.digits) for value in (spread.low, spread.high))
    return f"{_number(spread.median, metric.digits)} ({low}–{high})"


def _number(value: float, digits: int) -> str:
    """Three digits or more; decimals of what has that many before the point are left out."""
    if not math.isfinite(value):
        return "never"
    return f"{value:.{0 if abs(value) >= 100 else digits}f}"


def _steps_table(steps: Sequence[TimedStep], label: str) -> Table:
    titles = ("tokens", "prompts", "shapes", "median, ms", "lowest", "highest", "GFLOP/s")
    table = Table(*titles, title=f"forward: {label}")
    for column in table.columns:
        column.justify = "right"
    for step in steps:
        spread = Spread.of(step.seconds)
        times = (f"{1e3 * value:.2f}" for value in (spread.median, spread.low, spread.high))
        shapes = " + ".join(f"{tokens}x{rows}" for tokens, rows in step.shapes)
        rate = f"{1e-9 * step.flops / spread.median:.1f}"
        table.add_row(str(step.num_tokens), str(step.num_rows), shapes, *times, rate)
    return table

"""A results file of ``fastgen bench``: everything that was measured, raw, as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fastgen_jax.bench.exchange import Exchange
from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.bench.sla import ServiceLevel
from fastgen_jax.bench.summary import Percentiles, RunSummary, summarize
from fastgen_jax.errors import ConfigError

SCHEMA = "fastgen-bench"
VERSION = 1

PAPER_TOKEN_RATES = (2.0, 4.0, 6.0)
PAPER_PROMPT_RATE = 512.0

# What a reader has to know, in the file itself.
NOTES = {
    "times": "seconds on the client's clock since the start of the point",
    "requests": "in the order in which they were sent; none is left out, sorted or smoothed",
    "warm_up": "num_warm_up_requests were sent before the first point and aren't in the file",
    "token_times": "when the message with the token arrived; tokens of a message share its time",
    "message_sizes": "tokens of each message",
    "counting": "ids: the messages carried token ids. usage: one token a message, and what the "
    "server's usage counts beyond goes to the messages with the most text for each token. "
    "messages: one token a message, for want of a usage",
    "lateness": "seconds by which requests were sent after their scheduled_time; percentiles",
    "summary": "made from the requests, for convenience; infinite values are null",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run under one load.

    Attributes:
        parameters: what sets it apart: "clients" or "rate", and "policy" or
            "tensor_parallel_size" where they are swept.
        round: which of several runs alike, from 0 on.
        workload: the workload's settings.
        seconds: from the start to the last end.
        exchanges: every request, in the order of sending.
        engine: what the engine counted meanwhile, where it runs in this process.
    """

    parameters: Mapping[str, Any]
    round: int
    workload: Mapping[str, Any]
    seconds: float
    exchanges: tuple[Exchange, ...]
    engine: Mapping[str, Any] | None = None

    @property
    def records(self) -> tuple[RequestRecord, ...]:
        """Every request's record, failed ones too."""
        return tuple(exchange.record for exchange in self.exchanges)

    @property
    def summary(self) -> RunSummary:
        """The run in a few numbers."""
        return summarize(self.records)

    @property
    def lateness(self) -> Percentiles | None:
        """By how many seconds requests were sent too late."""
        return Percentiles.of([exchange.lateness for exchange in self.exchanges])


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedStep:
    """A step of so many tokens, timed again and again.

    Attributes:
        num_tokens: tokens in it, all of prompts.
        num_rows: prompts they belong to, of equal length but for one token.
        shapes: (tokens, rows) of what was launched for it; several where one didn't hold it.
        flops: of the products and of attention, padding left out.
        seconds: each time, in order.
    """

    num_tokens: int
    num_rows: int
    shapes: tuple[tuple[int, int], ...]
    flops: int
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResults:
    """All that one command measured.

    Attributes:
        command: "throughput", "latency", "load", "sweep" or "forward".
        label: what plots call it.
        machine: the facts of the machine that sent the requests.
        load_average: of that machine, before and after.
        target: what was measured: model and engine settings, or a server.
        options: the command's own.
        token_rates, prompt_rate: of the service levels that it is judged by.
        num_warm_up_requests: sent before the first point to each target, and not counted.
        points, steps: the measurements.
    """

    command: str
    label: str
    machine: Mapping[str, Any]
    load_average: Mapping[str, float]
    target: Mapping[str, Any]
    options: Mapping[str, Any]
    token_rates: tuple[float, ...] = PAPER_TOKEN_RATES
    prompt_rate: float = PAPER_PROMPT_RATE
    num_warm_up_requests: int = 0
    points: tuple[Point, ...] = ()
    steps: tuple[TimedStep, ...] = field(default=())

    @property
    def service_levels(self) -> tuple[ServiceLevel, ...]:
        """What effective throughput is judged by."""
        return tuple(
            ServiceLevel(token_rate=rate, prompt_rate=self.prompt_rate) for rate in self.token_rates
        )

    def save(self, path: str | Path) -> None:
        """Write the file; one that is there is replaced when the new one is complete."""
        path = Path(path)
        text = json.dumps(_content(self), indent=1, allow_nan=False)
        unfinished = path.with_name(path.name + ".part")
        unfinished.write_text(text + "\n", encoding="utf-8")
        os.replace(unfinished, path)


def load_results(path: str | Path) -> BenchResults:
    """What ``BenchResults.save`` wrote.

    Raises:
        ConfigError: the file can't be read, or is no results file of this version.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(str(error), field="results", value=str(path)) from error
    found = (data.get("schema"), data.get("version")) if isinstance(data, Mapping) else None
    if found != (SCHEMA, VERSION):
        raise ConfigError(
            f"is no {SCHEMA} file of version {VERSION} but {found}",
            field="results",
            value=str(path),
            remedy="measure again with `fastgen bench ... --json FILE`",
        )
    try:
        return _results(data)
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"lacks or misnames a field: {error}", field="results", value=str(path)
        ) from error


def _content(results: BenchResults) -> dict[str, Any]:
    content = {"schema": SCHEMA, "version": VERSION, "notes": NOTES}
    own = {f.name: getattr(results, f.name) for f in fields(BenchResults)}
    own["points"] = [_point_content(point) for point in results.points]
    own["steps"] = [asdict(step) for step in results.steps]
    return content | own


def _point_content(point: Point) -> dict[str, Any]:
    lateness = point.lateness
    return {
        "parameters": dict(point.parameters),
        "round": point.round,
        "workload": dict(point.workload),
        "seconds": point.seconds,
        "engine": point.engine,
        "summary": _finite(asdict(point.summary)),
        "lateness": None if lateness is None else asdict(lateness),
        "requests": [exchange.to_dict() for exchange in point.exchanges],
    }


def _results(data: Mapping[str, Any]) -> BenchResults:
    own = {f.name: data[f.name] for f in fields(BenchResults)}
    own["token_rates"] = tuple(data["token_rates"])
    own["points"] = tuple(_point(point) for point in data["points"])
    own["steps"] = tuple(_step(step) for step in data["steps"])
    return BenchResults(**own)


def _point(data: Mapping[str, Any]) -> Point:
    return Point(
        parameters=data["parameters"],
        round=data["round"],
        workload=data["workload"],
        seconds=data["seconds"],
        exchanges=tuple(Exchange.from_dict(request) for request in data["requests"]),
        engine=data["engine"],
    )


def _step(data: Mapping[str, Any]) -> TimedStep:
    return TimedStep(
        num_tokens=data["num_tokens"],
        num_rows=data["num_rows"],
        shapes=tuple((tokens, rows) for tokens, rows in data["shapes"]),
        flops=data["flops"],
        seconds=tuple(data["seconds"]),
    )


def _finite(value: Any) -> Any:
    """The same, with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

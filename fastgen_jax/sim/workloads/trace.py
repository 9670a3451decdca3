"""Arrivals in a file: a line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastgen_jax.errors import ConfigError, FastGenError
from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.workloads.workload import Replay

_NUMBERS = ("num_output_tokens", "max_tokens", "priority", "client")
_FIELDS = {"time", "prompt_token_ids", "num_prompt_tokens", "ttft", "tpot", "cache_salt", *_NUMBERS}


def read_trace(path: str | Path) -> Replay:
    """The arrivals of a trace, in order of time.

    Each line is an object with ``time`` in seconds, ``num_output_tokens``, and ``prompt_token_ids``
    or, for a prompt that shares nothing, ``num_prompt_tokens``. ``max_tokens``, ``priority``,
    ``client``, ``cache_salt``, ``ttft`` and ``tpot`` may follow.

    Raises:
        ConfigError: the file can't be read, or a line isn't such an object; names the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(error), field="trace", value=str(path)) from error
    arrivals: list[Arrival] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            arrivals.append(_arrival(json.loads(line), number))
        except (ValueError, TypeError, KeyError, FastGenError) as error:
            raise ConfigError(
                f"line {number}: {_describe(error)}", field="trace", value=str(path)
            ) from error
    return Replay(arrivals)


def write_trace(path: str | Path, arrivals: Iterable[Arrival]) -> None:
    """Write arrivals so that ``read_trace`` gives equal ones."""
    with Path(path).open("w", encoding="utf-8") as file:
        for arrival in arrivals:
            file.write(json.dumps(_entry(arrival)) + "\n")


def _entry(arrival: Arrival) -> dict[str, object]:
    entry: dict[str, object] = {
        "time": arrival.time,
        "prompt_token_ids": arrival.prompt_token_ids,
        "ttft": arrival.targets.ttft,
        "tpot": arrival.targets.tpot,
        "cache_salt": arrival.cache_salt,
    }
    entry.update((name, getattr(arrival, name)) for name in _NUMBERS)
    return {name: value for name, value in entry.items() if value is not None}


def _arrival(entry: Any, line: int) -> Arrival:
    if not isinstance(entry, Mapping):
        raise ValueError("is no object")
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no field of a trace")
    time = entry["time"]
    if not isinstance(time, int | float):
        raise ValueError(f"time={time!r} is no number of seconds")
    numbers = {name: _integer(entry, name) for name in _NUMBERS if name in entry}
    salt = entry.get("cache_salt")
    return Arrival(
        time=float(time),
        prompt_token_ids=_prompt(entry, line),
        num_output_tokens=numbers["num_output_tokens"],
        max_tokens=numbers.get("max_tokens"),
        priority=numbers.get("priority", 0),
        client=numbers.get("client"),
        targets=LatencyTargets(ttft=entry.get("ttft"), tpot=entry.get("tpot")),
        cache_salt=None if salt is None else str(salt),
    )


def _prompt(entry: Mapping[str, Any], line: int) -> tuple[int, ...]:
    if ("prompt_token_ids" in entry) == ("num_prompt_tokens" in entry):
        raise ValueError("needs either prompt_token_ids or num_prompt_tokens")
    if "prompt_token_ids" in entry:
        return tuple(int(token_id) for token_id in entry["prompt_token_ids"])
    return (line,) * _integer(entry, "num_prompt_tokens")


def _integer(entry: Mapping[str, Any], name: str) -> int:
    value = entry[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} is no integer")
    return value


def _describe(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)

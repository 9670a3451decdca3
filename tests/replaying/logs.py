"""Replaying logs of fake engines, and changing them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastgen_jax import ReplayReport, replay
from fastgen_jax.replaying.difference import Difference
from fastgen_jax.testing import ByteTokenizer

TOKENIZER = ByteTokenizer()

type Change = Callable[[dict[str, Any]], object]


def simulate(path: Path, **options: Any) -> ReplayReport:
    """The replay of a fake engine's log."""
    return replay(path, simulate=True, tokenizer=TOKENIZER, **options)


def changed(log: Path, kind: str, change: Change, *, number: int = 40) -> tuple[Path, int]:
    """A copy of the log with the ``number``-th event of a kind changed, and that event's line."""
    lines = log.read_text().splitlines()
    places = [i for i, line in enumerate(lines) if json.loads(line)["event"] == kind]
    place = places[number]
    event = json.loads(lines[place])
    change(event)
    lines[place] = json.dumps(event)
    path = log.with_name("changed.jsonl")
    path.write_text("\n".join(lines) + "\n")
    return path, place + 1


def first_difference(path: Path) -> Difference:
    """Where the replay leaves the log."""
    found = simulate(path).difference
    assert found is not None
    return found

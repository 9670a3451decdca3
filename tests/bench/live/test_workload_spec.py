"""Workloads as settings, and the files in configs/bench/."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from fastgen_jax.bench.commands.options import WorkloadOptions
from fastgen_jax.bench.live.workload_spec import WorkloadSpec
from fastgen_jax.errors import ConfigError
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.workloads.trace import write_trace

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "configs" / "bench").glob("*.toml"))

# File -> its kind, and the mean lengths that its name or comments promise.
PROMISED = {
    "bursty.toml": ("open_loop", 200, 32),
    "chat.toml": ("conversations", 120, 48),
    "paper-1200-128.toml": ("closed_loop", 1200, 128),
    "paper-2600-60.toml": ("closed_loop", 2600, 60),
    "paper-650-15.toml": ("closed_loop", 650, 15),
    "shared-prefix.toml": ("open_loop", 576, 32),
}


def test_every_file_has_its_promise() -> None:
    assert [path.name for path in FILES] == sorted(PROMISED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_sends_what_it_promises(path: Path) -> None:
    kind, prompt, output = PROMISED[path.name]
    spec = WorkloadSpec.from_toml(path)
    assert spec.kind == kind
    assert path.read_text().startswith("# ")
    spec = WorkloadOptions(workload=str(path), requests=400, clients=400).spec()
    if kind == "open_loop":
        spec = WorkloadOptions(workload=str(path), requests=400).spec()
    arrivals = list(spec.build().start())
    assert len(arrivals) == 400
    assert fmean(len(a.prompt_token_ids) for a in arrivals) == pytest.approx(prompt, rel=0.06)
    assert fmean(a.num_output_tokens for a in arrivals) == pytest.approx(output, rel=0.06)


def test_bursts_come_at_the_rate_that_is_said() -> None:
    spec = WorkloadOptions(workload=str(ROOT / "configs/bench/bursty.toml"), requests=4000).spec()
    times = [arrival.time for arrival in spec.build().start()]
    assert times[-1] == pytest.approx(4000, rel=0.2)
    gaps = [b - a for a, b in pairwise(times)]
    assert sum(gap < 0.1 for gap in gaps) > 2000, "more than half come right after another"


def test_options_are_the_settings_with_help() -> None:
    options = {field.name for field in fields(WorkloadOptions)} - {"workload"}
    assert options == {field.name for field in fields(WorkloadSpec)}


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "closed_loop"),
        ({"rate": 2.0}, "open_loop"),
        ({"clients": 3}, "closed_loop"),
        ({"kind": "conversations", "rate": 2.0}, "conversations"),
        ({"workload": str(ROOT / "configs/bench/bursty.toml"), "clients": 3}, "closed_loop"),
        ({"workload": str(ROOT / "configs/bench/chat.toml"), "rate": 3.0}, "conversations"),
    ],
)
def test_the_kind_follows_from_what_is_given(options: dict[str, Any], kind: str) -> None:
    assert WorkloadOptions(**options).spec().kind == kind


def test_options_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("clients = 7\nprompt_tokens = 99\n")
    spec = WorkloadOptions(workload=str(path), prompt_tokens=11.0, ttft=0.5).spec()
    assert (spec.clients, spec.prompt_tokens, spec.ttft) == (7, 11.0, 0.5)


def test_a_trace_is_played(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    arrivals = [Arrival(time=t, prompt_token_ids=(1, 2), num_output_tokens=2) for t in (0.0, 1.0)]
    write_trace(path, arrivals)
    assert list(WorkloadOptions(trace=str(path)).spec().build().start()) == arrivals


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('kind = "closed"', "^kind='closed': is no workload; use one of closed_loop"),
        ("client = 3", "^client=3: is no setting of a workload; known ones are kind"),
        ('clients = "3"', "^clients='3': must be int"),
        ("clients = true", "^clients=True: must be int"),
        ("clients = 0", "^num_clients=0: must be at least 1"),
        ("requests = 0", "^requests=0: must be at least 1"),
        ("prefixes = 3", "^prefixes, prefix_tokens="),
        ('kind = "trace"', "^trace=None: and kind='trace' don't go together"),
        ("ttft = 0.0", "^ttft=0.0: "),
        ("[[", "^workload="),
    ],
)
def test_what_cannot_be_is_refused_by_name(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        WorkloadSpec.from_toml(path).build()
    assert isinstance(caught.value, ValueError)


def test_missing_files_are_refused_with_their_path() -> None:
    with pytest.raises(ConfigError, match=r"^workload='nowhere.toml'"):
        WorkloadSpec.from_toml("nowhere.toml")

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.targets import TARGETS, MissingResultError, Results, Target, targets_table


def median(value: float) -> dict[str, float]:
    return {"median": value, "low": value, "high": value}


def write(directory: Path, name: str, content: dict[str, object]) -> None:
    (directory / f"{name}.json").write_text(json.dumps(content))


def row(directory: Path, name: str) -> list[str]:
    (target,) = [target for target in TARGETS if target.name.startswith(name)]
    return target.row(Results(directory))


def test_nothing_is_met_without_results(tmp_path: Path):
    lines = targets_table(tmp_path).splitlines()
    assert len(lines) == 2 + len(TARGETS)
    assert all("not measured" in line for line in lines[2:])


@pytest.mark.parametrize(
    ("bound", "met"), [("at least", [False, True, True]), ("at most", [True, True, False])]
)
def test_bounds(bound, met: list[bool]):
    target = Target(name="", bound=bound, limit=2.0, unit="", measure=lambda results: 0.0)
    assert [target.is_met(value) for value in (1.9, 2.0, 2.1)] == met


def test_throughput_counts_against_the_better_peer(tmp_path: Path):
    llama = {
        "times_faster": {"llama.cpp": median(2.0)},
        "llama_batched_bench": {"times_faster": median(1.7)},
    }
    write(tmp_path, "offline_throughput", llama)
    assert row(tmp_path, "throughput over the better")[2:] == ["not measured", ""]
    write(tmp_path, "offline_throughput_vllm", {"times_faster": {"vllm": median(3.0)}})
    assert row(tmp_path, "throughput over the better")[2:] == ["1.70×", "yes"]
    write(tmp_path, "offline_throughput_vllm", {"times_faster": {"vllm": median(1.5)}})
    assert row(tmp_path, "throughput over the better")[2:] == ["1.50×", "no"]


def test_decode_counts_against_server_and_bench(tmp_path: Path):
    content = {
        "ratios": {"llama.cpp Q4_1": {"decode": median(1.8)}},
        "llama_bench": {"llama.cpp Q4_1": {"decode_ratio": median(1.4)}},
    }
    write(tmp_path, "single_stream", content)
    assert row(tmp_path, "decode of one stream over llama.cpp, Q4_1")[2:] == ["1.40×", "no"]
    assert row(tmp_path, "decode of one stream over llama.cpp, Q8_0")[2] == "not measured"


def test_the_longest_step_of_at_most_32_rows_counts(tmp_path: Path):
    cells = [{"rows": 1, "times_floor": 1.1}, {"rows": 32, "times_floor": 1.3}]
    write(tmp_path, "decode_steps", {"cells": [*cells, {"rows": 64, "times_floor": 9.0}]})
    assert row(tmp_path, "longest decode step")[2:] == ["1.30×", "yes"]


def test_the_better_cold_start_and_the_worse_gap_count(tmp_path: Path):
    seconds = {"cold": median(12.0), "cold, in background": median(8.0), "warm": median(5.0)}
    content = {"first_token_seconds": seconds, "import_seconds": {"fastgen_jax": 0.4}}
    write(tmp_path, "start_up", content)
    write(tmp_path, "step_gap", {"gap_share_of_step": 0.01, "gap_share_of_traced_time": 0.04})
    assert row(tmp_path, "cold start")[2:] == ["8.00 s", "yes"]
    assert row(tmp_path, "warm start")[2:] == ["5.00 s", "no"]
    assert row(tmp_path, "`import fastgen_jax`")[2:] == ["0.40 s", "yes"]
    assert row(tmp_path, "gap between")[2:] == ["4.00 %", "no"]


def test_host_time_counts_with_the_queue(tmp_path: Path):
    write(tmp_path, "host_time", {"milliseconds": {"0 queued": {"step": median(0.2)}}})
    assert row(tmp_path, "host time")[2] == "not measured"
    milliseconds = {"0 queued": {"step": median(0.2)}, "10000 queued": {"step": median(0.6)}}
    write(tmp_path, "host_time", {"milliseconds": milliseconds})
    assert row(tmp_path, "host time")[2:] == ["0.60 ms", "no"]


def test_the_prefix_cache_may_change_no_token(tmp_path: Path):
    content = {"times_less": median(6.0), "num_requests_with_other_tokens": [0, 1]}
    write(tmp_path, "prefix_cache", content)
    assert row(tmp_path, "prefill")[2:] == ["6.00× less", "yes"]
    assert row(tmp_path, "requests whose tokens")[2:] == ["1.00", "no"]


def test_trial_runs_count_as_missing(tmp_path: Path):
    write(tmp_path, "prefix_cache", {"settings": {"quick": True}, "times_less": median(9.0)})
    with pytest.raises(MissingResultError):
        Results(tmp_path).file("prefix_cache")

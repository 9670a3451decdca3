"""Results files: what is written comes back, raw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastgen_jax.bench.exchange import Exchange
from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.bench.results import BenchResults, Point, TimedStep, load_results
from fastgen_jax.bench.rounds import group_rounds
from fastgen_jax.errors import ConfigError
from fastgen_jax.latency_targets import LatencyTargets

ENGINE = {
    "num_steps": 3,
    "num_step_tokens": 20,
    "num_padding_tokens": 4,
    "num_decode_tokens": 5,
    "num_preemptions": 0,
    "num_queried_tokens": 15,
    "num_hit_tokens": 0,
    "steps_by_shape": {"8x8": 3},
}


def exchange(number: int, error: str | None = None) -> Exchange:
    times = np.array([0.1 + number / 3, 0.2 + number / 3]) if error is None else np.empty(0)
    record = RequestRecord(
        request_id=str(number),
        arrival_time=0.01 * number,
        num_prompt_tokens=10 + number,
        token_times=times,
        is_complete=error is None,
        targets=LatencyTargets(ttft=0.5),
        client=number % 2,
    )
    return Exchange(
        record=record,
        scheduled_time=0.01 * number - 0.001,
        num_asked_tokens=2,
        message_sizes=(2,) if error is None else (),
        counting="usage",
        error=error,
        num_server_prompt_tokens=11,
    )


def results(**values: Any) -> BenchResults:
    points = tuple(
        Point(
            parameters={"clients": clients, "policy": "fcfs"},
            round=number,
            workload={"kind": "closed_loop"},
            seconds=1.5,
            exchanges=(exchange(1), exchange(0), exchange(2, error="HTTP 500")),
            engine=ENGINE,
        )
        for number in range(2)
        for clients in (1, 2)
    )
    given: dict[str, Any] = {
        "command": "sweep",
        "label": "a model",
        "machine": {"cpu": "a cpu"},
        "load_average": {"start": 0.1, "end": 0.2},
        "target": {"kind": "in_process"},
        "options": {"rounds": 2},
        "num_warm_up_requests": 4,
        "points": points,
        "steps": (
            TimedStep(num_tokens=4, num_rows=2, shapes=((8, 8),), flops=9, seconds=(0.2, 0.1)),
        ),
    }
    return BenchResults(**(given | values))


def test_the_round_trip_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    written = results()
    written.save(path)
    read = load_results(path)
    assert read.steps == written.steps
    for name in ("command", "label", "machine", "target", "options", "token_rates", "prompt_rate"):
        assert getattr(read, name) == getattr(written, name)
    for one, other in zip(read.points, written.points, strict=True):
        assert (one.parameters, one.round, one.engine) == (
            other.parameters,
            other.round,
            other.engine,
        )
        for found, given in zip(one.exchanges, other.exchanges, strict=True):
            assert found.to_dict() == given.to_dict()
            assert found.record.token_times.tolist() == given.record.token_times.tolist()
            assert found.record.targets == given.record.targets
        assert one.summary == other.summary


def test_the_file_is_plain_json_in_the_order_of_sending(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results().save(path)
    data = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (data["schema"], data["version"]) == ("fastgen-bench", 1)
    point = data["points"][0]
    assert [request["request_id"] for request in point["requests"]] == ["1", "0", "2"]
    assert point["summary"]["num_failed"] == 1
    assert point["summary"]["ttft"]["max"] is None, "infinite, since one never got a token"
    assert "warm_up" in data["notes"]
    assert list(tmp_path.iterdir()) == [path], "nothing unfinished is left"


def test_a_failed_request_counts_and_has_no_first_token(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results().save(path)
    point = load_results(path).points[0]
    assert point.summary.num_requests == 3
    assert point.summary.num_failed == 1
    assert point.records[2].ttft == np.inf


def test_rounds_are_grouped_in_the_order_of_the_first() -> None:
    groups = group_rounds(results().points)
    assert [group.name for group in groups] == ["1 client, fcfs", "2 clients, fcfs"]
    assert [[point.round for point in group.points] for group in groups] == [[0, 1], [0, 1]]
    assert [group.load for group in groups] == [1, 2]
    assert groups[0].setting == "fcfs"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Expecting"),
        ("[]", "is no fastgen-bench file of version 1"),
        ('{"schema": "fastgen-bench", "version": 2}', "measure again"),
        ('{"schema": "fastgen-bench", "version": 1}', "lacks or misnames a field: 'command'"),
    ],
)
def test_what_is_no_results_file_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_results(path)
    with pytest.raises(ConfigError, match="No such file"):
        load_results(tmp_path / "nowhere.json")

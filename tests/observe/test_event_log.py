"""The file that events are written to: when lines are in it, and what is there already."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen_jax.errors import ConfigError
from fastgen_jax.observe.event_log import EventLog, check_log_path


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_header_is_there_at_once_and_the_rest_after_a_second(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    now = 10.0
    log = EventLog(path, {"event": "start"}, clock=lambda: now)
    assert lines(path) == [{"event": "start"}]
    now = 10.9
    log.emit({"event": "plan"})
    assert len(lines(path)) == 1
    now = 11.0
    log.emit({"event": "tokens"})
    assert [line["event"] for line in lines(path)] == ["start", "plan", "tokens"]
    now = 11.5
    log.emit({"event": "plan"})
    assert len(lines(path)) == 3
    log.closed()
    assert [line["event"] for line in lines(path)][3:] == ["plan", "close"]


def test_a_failure_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = EventLog(path, {}, clock=lambda: 0.0)
    log.failed("no device")
    assert lines(path)[1:] == [{"event": "failed", "error": "no device", "launching": False}]
    log.closed()


def test_a_process_that_ends_without_closing_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    program = (
        "from fastgen_jax import SamplingParams\n"
        "from fastgen_jax.testing import fake_engine\n"
        f"engine = fake_engine(replay_log={str(path)!r})\n"
        "engine.submit([1, 2], SamplingParams(max_tokens=3))\n"
        "engine.run()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert lines(path)[-1]["event"] == "end"


def test_a_log_that_is_there_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for number in range(3):
        EventLog(path, {"number": number}).closed()
    assert lines(path)[0] == {"number": 2}
    assert lines(tmp_path / "log.jsonl.old")[0] == {"number": 1}


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "log.jsonl"):
        with pytest.raises(ConfigError, match=r"replay_log=.*can't be written"):
            check_log_path(path)
    with pytest.raises(ConfigError, match=r"replay_log=.*can't be written"):
        EventLog(tmp_path / "nowhere" / "log.jsonl", {})
    check_log_path(tmp_path / "log.jsonl")

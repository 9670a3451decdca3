"""Runs that failed or were killed, and logs that are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastgen_jax import SamplingParams
from fastgen_jax.errors import EngineClosedError, ReplayError
from fastgen_jax.testing import Faults, fake_engine
from tests.replaying.logs import Change, changed, first_difference, simulate
from tests.replaying.traffic import run


@pytest.mark.parametrize("at", [0, 1, 7])
@pytest.mark.parametrize("where", ["launch", "read"])
def test_a_run_that_failed_is_replayed_with_its_failure(
    tmp_path: Path, where: str, at: int
) -> None:
    path = tmp_path / "log.jsonl"
    faults = Faults(
        launch_error_at=at if where == "launch" else None,
        read_error_at=at if where == "read" else None,
    )
    found = run(path, 4, num_requests=30, faults=faults)
    assert any(one.request.error for one in found.completions)
    report = simulate(path)
    assert report.difference is None
    assert report.failure is not None
    assert report.failure in str(report)
    assert report.num_events == len(path.read_text().splitlines()) - 1


def test_a_failure_of_the_engine_itself_must_happen_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    engine = fake_engine(replay_log=path)
    engine.submit([1, 2], SamplingParams(max_tokens=9))
    engine.step()

    def broken() -> None:
        raise ValueError("a bug of the scheduler")

    engine.scheduler.schedule = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(EngineClosedError):
        engine.step()
    engine.close()
    found = first_difference(path)
    assert (found.field, found.logged, found.found) == ("event", "failed", "plan")
    assert "a bug of the scheduler" in str(found)


def test_a_process_that_was_killed_leaves_a_log_up_to_then(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    whole = log.read_bytes()
    num_events = -1
    for end in (len(whole) // 4, len(whole) // 2, len(whole) * 2 // 3, len(whole) - 3):
        path.write_bytes(whole[:end])
        report = simulate(path)
        assert report.difference is None
        assert report.is_cut == (not whole[:end].endswith((b"\n", b"}")))
        assert ("incomplete" in str(report)) == report.is_cut
        assert report.num_events > num_events
        num_events = report.num_events


def test_a_log_without_its_end_is_replayed(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    for end in range(1, 400, 31):
        path.write_text("".join(lines[:end]))
        report = simulate(path)
        assert (report.difference, report.is_cut) == (None, False)
        assert report.num_events == end - 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"event":"plan"', "line 40"),
        ("[1, 2]", "line 40"),
        ('{"event":"party"}', "party"),
        ('{"event":"plan","step":1}', "time"),
        ('{"event":"submit","request":"1"}', "params"),
        ('{"event":"submit","arrival":1,"prompt":[1],"params":{"colour":2}}', "colour"),
        ('{"event":"shapes","shapes":[[1,2,3]]}', "line 40"),
        ('{"event":"abort"}', "request"),
    ],
)
def test_a_damaged_line_is_an_error(log: Path, tmp_path: Path, line: str, problem: str) -> None:
    lines = log.read_text().splitlines()
    path = tmp_path / "log.jsonl"
    place = next(
        i for i in range(39, len(lines)) if json.loads(lines[i])["event"] in ("plan", "submit")
    )
    lines[place] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ReplayError, match=problem.replace("line 40", f"line {place + 1}")):
        simulate(path)


def test_damaged_tokens_are_an_error(log: Path) -> None:
    path, line = changed(log, "tokens", lambda event: event.update(tokens=["a"]))
    with pytest.raises(ReplayError, match=f"line {line} "):
        simulate(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda header: header.update(format=2), "format 2"),
        (lambda header: header.pop("format"), "no header"),
        (lambda header: header.pop("setup"), "setup"),
        (lambda header: header["setup"].pop("shapes"), "shapes"),
        (lambda header: header["setup"]["scheduler"].update(colour=1), "colour"),
    ],
)
def test_a_header_that_cannot_be_is_an_error(
    log: Path, tmp_path: Path, change: Change, problem: str
) -> None:
    lines = log.read_text().splitlines()
    header = json.loads(lines[0])
    change(header)
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join([json.dumps(header), *lines[1:]]))
    with pytest.raises(ReplayError, match=problem):
        simulate(path)


@pytest.mark.parametrize("content", ["", "\n", "hello\n", "{}\n"])
def test_another_file_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(content)
    with pytest.raises(ReplayError, match="line 1"):
        simulate(path)
    with pytest.raises(ReplayError, match="can't be read"):
        simulate(tmp_path / "another.jsonl")

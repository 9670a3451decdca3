"""A log is read line by line, and says where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastgen_jax.errors import ReplayError
from fastgen_jax.observe.log_reader import LogReader

HEADER = '{"event":"start"}\n'


def reader(tmp_path: Path, rest: str) -> LogReader:
    path = tmp_path / "log.jsonl"
    path.write_text(HEADER + rest)
    return LogReader(path)


def test_events_can_be_looked_at_before_they_are_taken(tmp_path: Path) -> None:
    with reader(tmp_path, '{"event":"plan"}\n{"event":"tokens"}\n{"event":"end"}\n') as log:
        assert log.header == {"event": "start"}
        for ahead, kind in ((2, "end"), (0, "plan"), (1, "tokens")):
            event = log.peek(ahead)
            assert event is not None
            assert (event.kind, event.line) == (kind, ahead + 2)
        assert log.peek(3) is None
        taken = [log.take() for _ in range(4)]
        assert [event and event.kind for event in taken] == ["plan", "tokens", "end", None]
        assert log.num_bytes_read == log.num_bytes
        assert not log.is_cut


@pytest.mark.parametrize("cut", ['{"event":"pl', '{"event":"plan"', "{", '{"event":"\xc3'])
def test_a_last_line_that_broke_off_is_left_out(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(f'{HEADER}{{"event":"plan"}}\n{cut}'.encode("latin-1"))
    with LogReader(path) as log:
        assert log.take() is not None
        assert not log.is_cut
        assert log.peek() is None
        assert log.is_cut
        assert log.take() is None


def test_a_whole_last_line_may_lack_its_end(tmp_path: Path) -> None:
    with reader(tmp_path, '{"event":"plan"}') as log:
        assert log.take() is not None
        assert log.take() is None
        assert not log.is_cut


def test_damage_is_named_and_stays(tmp_path: Path) -> None:
    with reader(tmp_path, '{"event":"plan"}\n{"event":\n{"event":"end"}\n') as log:
        assert log.take() is not None
        for _ in range(2):
            with pytest.raises(ReplayError, match="line 3 isn't a line of a log"):
                log.peek()


def test_another_event_is_damage(tmp_path: Path) -> None:
    with (
        reader(tmp_path, '{"event":"party"}\n') as log,
        pytest.raises(ReplayError, match=r"line 2.*'party'"),
    ):
        log.take()

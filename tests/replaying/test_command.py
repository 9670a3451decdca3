"""``fastgen replay``: what is printed, and the exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastgen_jax import SamplingParams, cli
from fastgen_jax.testing import fake_engine


def replay(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status."""
    monkeypatch.setattr("sys.argv", ["fastgen", "replay", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A log without stop strings."""
    path = tmp_path / "plain.jsonl"
    engine = fake_engine(replay_log=path)
    for length in range(1, 9):
        engine.submit(range(length), SamplingParams(max_tokens=length))
    engine.run()
    engine.close()
    return path


def test_no_difference_is_status_0(
    plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(monkeypatch, str(plain), "--simulate") == 0
    out = capsys.readouterr().out
    assert out.startswith("Replayed in simulation")
    assert out.endswith("No difference\n")
    assert replay(monkeypatch, str(plain), "--simulate", "--until-step", "2") == 0
    assert "3 steps" in capsys.readouterr().out


def test_a_difference_is_status_1(
    plain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain.write_text(plain.read_text().replace('"starts":[0,0', '"starts":[1,0', 1))
    assert replay(monkeypatch, str(plain), "--simulate") == 1
    out = capsys.readouterr().out
    assert "First difference: line" in out
    assert "request 0 runs from position 0 on, the log says 1" in out


@pytest.mark.parametrize("options", [(), ("--simulate",)])
def test_what_cannot_be_replayed_is_status_2(
    options: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert replay(monkeypatch, str(tmp_path / "nothing.jsonl"), *options) == 2
    assert "can't be read" in capsys.readouterr().err

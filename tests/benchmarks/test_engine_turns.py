from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.engine_turns import EngineTurns
from benchmarks.workload import WorkloadRequest

PROTOCOL = Path(__file__).parents[2] / "benchmarks" / "peers"
REQUEST = WorkloadRequest(prompt_token_ids=(1, 2), max_tokens=2)


def echo(token: int) -> list[str]:
    script = f"""
import os, sys
sys.path.insert(0, {str(PROTOCOL)!r})
from protocol import serve, take_stdout
messages = take_stdout()
print("started", file=sys.stderr, flush=True)
serve(messages, {{"pid": os.getpid()}}, lambda requests: {{
    "seconds": 0.5, "output_token_ids": [[{token}] * r["max_tokens"] for r in requests]
}})
"""
    return [sys.executable, "-c", script]


def stops(pid: int) -> bool:
    """Whether the process is stopped; a signal takes a moment on a busy machine."""
    end = time.monotonic() + 5.0
    while time.monotonic() < end:
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            return True
        time.sleep(0.01)
    return False


def test_engines_answer_in_turns(tmp_path: Path):
    with EngineTurns({"a b": echo(3), "c": echo(4)}, log_dir=tmp_path) as engines:
        assert engines.names == ("a b", "c")
        assert set(engines.idle_cores) == {"a b", "c"}
        turns = [engines.run(name, [REQUEST]) for name in engines.names * 2]
        assert [turn.engine for turn in turns] == ["a b", "c"] * 2
        assert [turn.answer["output_token_ids"][0] for turn in turns] == [[3, 3], [4, 4]] * 2
        assert turns[0].seconds == 0.5
        pids = [one["pid"] for one in engines.startup.values()]
        with engines.all_paused():
            assert all(stops(pid) for pid in pids)
        assert engines.run("c", [REQUEST]).answer["output_token_ids"] == [[4, 4]]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert (tmp_path / "a_b.log").read_text() == "started\n"


def test_a_broken_engine_ends_those_before_it(tmp_path: Path):
    commands = {"good": echo(1), "broken": [sys.executable, "-c", "raise SystemExit(3)"]}
    with pytest.raises(RuntimeError, match="broken ended with status 3"):
        EngineTurns(commands, log_dir=None)
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "protocol" in " ".join(child.cmdline())]

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.engine_process import EngineProcess
from benchmarks.workload import Mix, draw_workload

PROTOCOL = Path(__file__).parents[2] / "benchmarks" / "peers"
ECHO = f"""
import sys
sys.path.insert(0, {str(PROTOCOL)!r})
from protocol import serve, take_stdout
messages = take_stdout()
print("a stray line that must not reach the messages", flush=True)
serve(messages, {{"engine": "echo"}}, lambda requests: {{
    "seconds": 1.0, "output_token_ids": [[7] * r["max_tokens"] for r in requests]
}})
"""


def test_an_engine_runs_pauses_and_ends():
    workload = draw_workload(Mix(num_requests=3, prompt_mean=5, output_mean=6))
    with EngineProcess("echo", [sys.executable, "-c", ECHO]) as engine:
        assert engine.ready == {"engine": "echo"}
        engine.pause()
        with engine.at_work():
            answer = engine.run(workload.requests)
        lengths = [len(ids) for ids in answer["output_token_ids"]]
        assert lengths == [request.max_tokens for request in workload.requests]
        assert engine.idle_share(0.1) == 0.0
        pid = engine.pid
        assert psutil.Process(pid).status() == psutil.STATUS_STOPPED
    assert not psutil.pid_exists(pid)


def test_an_engine_that_ends_early_is_named():
    with pytest.raises(RuntimeError, match="broken ended with status 3"):
        EngineProcess("broken", [sys.executable, "-c", "raise SystemExit(3)"])

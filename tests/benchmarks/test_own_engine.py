from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.comparison import check_lengths
from benchmarks.engine_process import EngineProcess
from benchmarks.workload import Mix, draw_workload

pytestmark = pytest.mark.slow


def test_own_engine_answers_with_the_tokens_asked_for(smollm2_gguf: Path):
    workload = draw_workload(Mix(num_requests=2, prompt_mean=12, output_mean=5))
    command = [sys.executable, "-m", "benchmarks.own_engine", "--model", str(smollm2_gguf)]
    command += ["--max-num-seqs", "2", "--token-budget", "16", "--max-model-len", "64"]
    with EngineProcess("fastgen_jax", command) as engine:
        answers = [engine.run(workload.requests) for _ in range(2)]
    check_lengths("fastgen_jax", workload, answers[0]["output_token_ids"])
    assert answers[0]["output_token_ids"] == answers[1]["output_token_ids"]
    assert answers[0]["steps_by_shape"] == answers[1]["steps_by_shape"]
    assert answers[0]["seconds"] > 0.0

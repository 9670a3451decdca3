from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.start_up import (
    ImportTime,
    import_seconds,
    import_times,
    parse_import_times,
    top_modules,
    user_environment,
)
from fastgen_jax.bench.spread import Spread

LINES = """import time: self [us] | cumulative | imported package
import time:       120 |        120 |   _io
import time:      3000 |       3120 | fastgen_jax
something else | 5 | of a module
import time:       900 |        900 |     a.b
"""


def test_lines_of_importtime_are_read():
    times = parse_import_times(LINES)
    assert times == [
        ImportTime(module="_io", own=120, cumulative=120),
        ImportTime(module="fastgen_jax", own=3000, cumulative=3120),
        ImportTime(module="a.b", own=900, cumulative=900),
    ]
    assert [one.module for one in top_modules(times, 2)] == ["fastgen_jax", "a.b"]


def test_python_writes_such_lines():
    modules = {one.module: one for one in import_times("import json.tool")}
    assert modules["json.tool"].cumulative >= modules["json.tool"].own > 0


def test_what_a_bare_process_takes_is_left_out():
    imports = {
        "nothing": Spread.of([0.1, 0.2, 0.3]),
        "fastgen_jax": Spread.of([0.5, 0.7, 0.9]),
    }
    assert import_seconds(imports) == {"fastgen_jax": pytest.approx(0.5)}


def test_processes_keep_their_bytecode():
    environment = user_environment({"PYTHONDONTWRITEBYTECODE": "1", "PATH": "p"})
    assert environment == {"PATH": "p"}


@pytest.mark.slow
def test_first_token_tells_its_stages(smollm2_gguf):
    command = [sys.executable, "-m", "benchmarks.first_token", "--model", str(smollm2_gguf)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    stages = answer["stages"]
    assert 0.0 < stages["imported"] < stages["ready"] < stages["first_token"]
    assert len(answer["token_ids"]) == 1

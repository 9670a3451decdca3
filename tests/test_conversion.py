"""``fastgen convert``: what a user sees of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastgen_jax.conversion import convert
from fastgen_jax.errors import CheckpointError, ConfigError

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "references" / "families" / "qwen2"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    }
    command = [sys.executable, "-m", "fastgen_jax.cli", "convert", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_command_writes_and_says_so_and_refuses_the_second_time(tmp_path: Path) -> None:
    target = tmp_path / "new" / "snapshot"
    first = run(str(TINY), str(target), "--dtype", "bfloat16")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith(f"{target}: 0.0 MB of bfloat16 weights")
    second = run(str(TINY), str(target))
    assert second.returncode == 2
    assert second.stderr.startswith("fastgen: directory=")
    assert "--force" in second.stderr
    assert "Traceback" not in second.stderr
    assert run(str(TINY), str(target), "--force").returncode == 0


def test_what_was_written_is_told(tmp_path: Path) -> None:
    done = convert(TINY, tmp_path / "snapshot", dtype="float32", show_progress=False)
    assert done.directory == tmp_path / "snapshot"
    assert done.dtype == "float32"
    data = sum(path.stat().st_size for path in (tmp_path / "snapshot").rglob("d/*"))
    assert 0 < done.num_bytes <= data


@pytest.mark.parametrize(("model", "error"), [("nowhere", ConfigError), ("empty", CheckpointError)])
def test_a_model_that_cant_be_read_leaves_nothing(
    model: str, error: type[Exception], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(error):
        convert(str(tmp_path / model), tmp_path / "snapshot", show_progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]

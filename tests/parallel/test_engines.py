"""Whole engines over several devices give the tokens of one, greedy and drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("engines_on_eight_devices.py")
# (tensor, expert). Some models have fewer kv heads than the mesh has devices.
DENSE = [(2, 1), (4, 1), (8, 1)]
SPARSE = [*DENSE, (1, 2), (1, 4), (2, 2), (4, 2)]
MODELS = {"llama": DENSE, "gemma3": DENSE, "mixtral": SPARSE, "qwen3_moe": SPARSE}
# What every run of the suite tries.
BRIEFLY = {"qwen3_moe": [(2, 2)]}


def run(cache: Path, model: str, sizes: list[tuple[int, int]]) -> dict[str, list[list[int]]]:
    """The tokens by size of the mesh."""
    environment = os.environ | {
        # Machine code that isn't optimized compiles in half the time.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    runs = [f"{model}:{tensor},{expert}" for tensor, expert in [(1, 1), *sizes]]
    command = [sys.executable, "-W", "error", str(PROGRAM), str(cache), *runs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert list(found) == runs
    return found


def check(found: dict[str, list[list[int]]]) -> None:
    first, *others = found.values()
    assert len({token for tokens in first for token in tokens}) > 8  # not stuck on a token
    assert first[:3] != first[3:]
    for other in others:
        assert other == first


@pytest.mark.parametrize("model", BRIEFLY)
def test_the_same_tokens_on_some_meshes(model: str, compilation_cache: Path) -> None:
    check(run(compilation_cache, model, BRIEFLY[model]))


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_same_tokens_on_all_meshes(model: str, compilation_cache: Path) -> None:
    check(run(compilation_cache, model, MODELS[model]))


@pytest.mark.slow
def test_the_same_tokens_of_a_real_model_on_three_devices(
    smollm2_gguf: Path, compilation_cache: Path
) -> None:
    """It has 9 heads and 3 kv heads."""
    check(run(compilation_cache, str(smollm2_gguf), [(3, 1)]))

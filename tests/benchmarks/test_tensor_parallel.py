from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.scaling import (
    MeshSize,
    draw_scaling,
    fitting_meshes,
    scaling_entries,
    scaling_table,
)
from fastgen_jax.errors import ConfigError
from fastgen_jax.models.registry import family_of_hf
from fastgen_jax.models.shapes import SHAPES
from fastgen_jax.models.tensors import tensor_shapes

ROOT = Path(__file__).parents[2]
WIDTH, HEADS, VOCAB = 16, 4, 64


def test_the_meshes_are_those_that_the_model_and_the_machine_allow(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = SHAPES["smollm2-135m"]  # 9 heads, 3 kv heads
    found = fitting_meshes(model, tensor_sizes=None, expert_sizes=(1,), num_devices=8)
    assert found == [MeshSize(1, 1)]
    assert "left out TP 2: tensor_parallel_size=2" in capsys.readouterr().err
    found = fitting_meshes(model, tensor_sizes=(3, 1), expert_sizes=(1,), num_devices=3)
    assert found == [MeshSize(1, 1), MeshSize(3, 1)]


@pytest.mark.parametrize(
    ("sizes", "experts", "message"),
    [
        ((2,), (1,), r"tensor_parallel_size=2: .*num_heads=9.* use one of 1, 3"),
        ((1, 3), (1,), r"sizes=3: TP 3 takes 3 devices, and jax finds 2; use one of 1;"),
        (None, (1, 2), r"expert_parallel_size=2: the model has no experts"),
    ],
)
def test_a_size_that_was_asked_for_and_fits_in_no_mesh_is_refused(
    sizes: tuple[int, ...] | None, experts: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fitting_meshes(
            SHAPES["smollm2-135m"], tensor_sizes=sizes, expert_sizes=experts, num_devices=2
        )


def cell(devices: int, rows: int, milliseconds: float) -> dict[str, object]:
    return {
        "tensor": devices,
        "expert": 1,
        "devices": devices,
        "rows": rows,
        "context": 8 * rows,
        "seconds": {"median": milliseconds / 1e3},
        "tokens_per_second": 1e3 * max(rows, 1) / milliseconds,
    }


CELLS = [cell(2, 4, 8.0), cell(8, 4, 4.0), cell(4, 4, 4.0), cell(2, 0, 10.0), cell(4, 0, 4.0)]


def test_speedup_and_efficiency_are_against_the_fewest_devices() -> None:
    entries = scaling_entries(CELLS)
    assert [one["speedup"] for one in entries] == pytest.approx([1.0, 2.0, 2.0, 1.0, 2.5])
    assert [one["efficiency"] for one in entries] == pytest.approx([1.0, 0.5, 1.0, 1.0, 1.25])
    lines = scaling_table(entries).splitlines()
    assert lines[2].split() == ["TP", "8", "8", "4", "32", "4.00", "1000.0", "2.00", "0.50"]
    assert lines[5].split() == ["TP", "4", "4", "prefill", "4.00", "250.0", "2.50", "1.25"]


def test_a_plot_has_a_line_and_an_ideal_for_each_series(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plots" / "scaling.svg"
    draw_scaling(scaling_entries(CELLS), path, title="llama")
    drawn = path.read_text()
    assert "<svg" in drawn
    assert drawn.count("stroke-dasharray") >= 4  # step, tokens, prefill, efficiency


def write_llama(directory: Path) -> None:
    description = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    family = family_of_hf(description)
    model = family.config_from_hf(description, {})
    shapes = tensor_shapes(model)
    tensors = {
        placement.stored_name: np.ones(placement.stored_shape(shapes[placement.name]), np.float32)
        for placement in family.hf_weights(model).placements
    }
    (directory / "config.json").write_text(json.dumps(description))
    save_file(tensors, directory / "model.safetensors")


def sweep(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of its own, because jax counts the devices when it starts."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    fixed = ["--model", str(directory), "--cpu-devices", "2"]
    fixed += ["--compilation-cache-dir", "off", "--plot", "None"]
    command = [sys.executable, "-W", "error", "-m", "benchmarks.tensor_parallel", *fixed]
    return subprocess.run(
        [*command, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_sweep_measures_every_mesh_and_cell(tmp_path: Path) -> None:
    write_llama(tmp_path)
    few = "--rows 4 --contexts 16 --token-budget 4 --passes 2 --steps-per-pass 3"
    few += " --prompts 2 --prompt-tokens 6 --out out.json"
    done = sweep(tmp_path, *few.split())
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["devices"]["count"] == 2
    assert found["left_out"] == []
    cells = [(one["tensor"], one["rows"], one["context"]) for one in found["cells"]]
    assert cells == [(1, 4, 16), (1, 0, 0), (2, 4, 16), (2, 0, 0)]
    for one in found["cells"]:
        seconds = one["seconds"]
        assert 0 < seconds["low"] <= seconds["median"] <= seconds["high"]
        assert seconds["count"] == (2 * 3 if one["rows"] else 2)
        tokens = one["rows"] or 2 * 6
        assert one["tokens_per_second"] == pytest.approx(tokens / seconds["median"])
    assert str(tmp_path) not in json.dumps(found)


def test_a_sweep_over_more_devices_than_there_are_ends_before_it_starts(tmp_path: Path) -> None:
    write_llama(tmp_path)
    done = sweep(tmp_path, "--sizes", "1", "4")
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "sizes=4: TP 4 takes 4 devices, and jax finds 2; use one of 1, 2; on a CPU, "
        "--cpu-devices makes virtual ones"
    )

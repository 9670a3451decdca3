"""Loading, measured in processes of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.load_once import Load
from benchmarks.made_up_llama import LlamaSizes, write_llama
from benchmarks.model_loading import Case, load_in_process, summary
from benchmarks.report_tables import model_loading
from fastgen_jax.models.weights.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[2]
SIZES = LlamaSizes(
    layers=2, width=64, feed_forward=96, heads=4, kv_heads=2, head_dim=16, vocabulary=128
)
NUM_WEIGHTS = 2 * 128 * 64 + 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64 + 2 * 64)
LOAD = Load(
    import_seconds=1.0,
    seconds=2.0,
    weight_bytes=100_000_000,
    peak_bytes=130_000_000,
    largest_bytes=40_000_000,
)
CASE = Case(model="a", format="orbax", path=Path("a"), form="dense", devices=4)
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux counts a process's peak")


def test_the_made_up_model_opens(tmp_path: Path):
    write_llama(tmp_path, SIZES, dtype="bfloat16")
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.num_bytes == 2 * NUM_WEIGHTS
        assert checkpoint.lossless_dtype == "bfloat16"


@linux
def test_a_peak_is_noticed_after_it_is_over():
    """In a process of its own, where no freed memory is used again."""
    program = (
        "import numpy as np; from benchmarks.host_memory import HostMemory; "
        "before = HostMemory.begin(); np.ones(1 << 23); peak = before.peak_growth(); "
        "print(peak, HostMemory.begin().peak_growth())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    peak, after = map(int, done.stdout.split())
    assert 0.9 * (1 << 26) <= peak < 1.2 * (1 << 26)
    assert after < 1 << 22


@linux
def test_a_loading_counts_its_weights(tmp_path: Path):
    write_llama(tmp_path, SIZES, dtype="bfloat16")
    case = replace(CASE, format="safetensors", path=tmp_path, devices=2)
    load = load_in_process(case, "bfloat16")
    assert load.weight_bytes == 2 * NUM_WEIGHTS
    assert load.largest_bytes == 2 * 128 * 64
    assert 0 < load.seconds < 60
    assert load.peak_bytes >= 0


def test_a_failing_process_is_told_of(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"config\.json"):
        load_in_process(replace(CASE, path=tmp_path, devices=1), "bfloat16")


def test_what_is_promised_is_the_largest_tensor_and_a_share():
    one = summary(CASE, [LOAD, replace(LOAD, peak_bytes=150_000_000, seconds=4.0)])
    assert one["largest_and_share_bytes"] == 50_000_000
    assert one["beside_weights_bytes"]["low"] == 30_000_000
    assert one["beside_weights_bytes"]["high"] == 50_000_000
    assert one["seconds"]["median"] == 3.0


def test_the_table_has_a_row_for_each_case():
    content = {
        "settings": {"dtype": "bfloat16", "rounds": 1},
        "summaries": [summary(CASE, [LOAD])],
    }
    row = "| a, orbax, dense | 4 | 2.00 (2.00 to 2.00) | 1.00 | 100 | 30 (30 to 30) | 50 |"
    assert row in model_loading(content)

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.decode_floor import DecodeCost, DecodeFloor
from benchmarks.decode_steps import DecodeSteps, cell_entries, cells_blocks, steps_table
from benchmarks.gemm_rate import measure_gemm
from benchmarks.steady_decode import at_context
from fastgen_jax.batching import StepShape
from fastgen_jax.batching.inputs import InputLayout
from fastgen_jax.bench.spread import Spread

COST = DecodeCost(
    weight_bytes=1, kv_bytes_per_token=2**20, flops_per_row=1, flops_per_context_token=1
)


def test_cells_that_need_a_larger_cache_are_left_out():
    options = DecodeSteps(rows=(1, 4), contexts=(512, 1024), max_cache_gib=2.0)
    assert options.cells(COST) == [(1, 512), (1, 1024), (4, 512)]


def test_the_pool_holds_the_largest_cell_and_the_null_block():
    assert cells_blocks([(1, 512), (4, 33), (2, 64)], 32) == 17
    assert cells_blocks([(1, 32), (4, 33)], 32) == 9


def test_every_row_gets_the_context_and_blocks_of_its_own():
    layout = InputLayout(StepShape(8, 4), 6)
    packed = np.full(layout.size, 77, np.int32)
    seen = at_context(packed, layout, rows=3, context=70, block_size=16)
    assert packed.tolist() == [77] * layout.size
    assert seen[layout.slices["kv_len"]].tolist() == [70, 70, 70, 77]
    tables = seen[layout.slices["block_tables"]].reshape(4, 6)
    assert np.all(tables[:3, 5:] == 0)
    assert sorted(tables[:3, :5].ravel().tolist()) == list(range(1, 16))
    assert tables[3].tolist() == [77] * 6
    unchanged = np.ones(layout.size, bool)
    unchanged[layout.slices["kv_len"]] = unchanged[layout.slices["block_tables"]] = False
    assert np.all(seen[unchanged] == 77)


def test_entries_relate_the_time_to_the_larger_floor():
    seconds = {(1, 128): Spread.of([0.2, 0.3, 0.4]), (8, 128): Spread.of([0.6])}
    floors = {
        (1, 128): DecodeFloor(memory=0.1, matmul=0.05, in_turn=0.12),
        (8, 128): DecodeFloor(memory=0.2, matmul=0.4, in_turn=0.5),
    }
    entries = cell_entries(seconds, floors)
    assert [one["times_floor"] for one in entries] == pytest.approx([3.0, 1.5])
    assert [one["times_in_turn"] for one in entries] == pytest.approx([2.5, 1.2])
    assert [one["bound"] for one in entries] == ["memory", "matmul"]
    lines = steps_table(entries).splitlines()
    assert lines[1].split() == ["1", "128", "300.0", "100.0", "50.0", "3.00", "2.50"]
    assert len(lines) == 3


def test_the_gemm_rate_is_the_best_of_all():
    rate = measure_gemm(size=64, repeats=3)
    assert set(rate.flops_per_second) == {"numpy float32", "XLA float32", "XLA bfloat16"}
    medians = [one.median for one in rate.flops_per_second.values()]
    assert rate.rate == max(medians) > 0.0
    assert all(one.low <= one.median <= one.high for one in rate.flops_per_second.values())

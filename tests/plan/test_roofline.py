"""The estimate's arithmetic on launches whose answer can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastgen_jax.models.shapes import SHAPES
from fastgen_jax.plan.gpus import A100, H100
from fastgen_jax.plan.launches import Launch
from fastgen_jax.plan.load import AttentionWork, StepLoad, attention_work, least_work
from fastgen_jax.plan.roofline import Efficiencies, compute_seconds, price, with_attention

IDEAL = Efficiencies(
    memory=1.0, tensor=1.0, overlap=1.0, tiles=((128, 128, 1.0),), most_splits=1, kernel=0.0
)


def product(rows: int, columns: int, depth: int) -> Launch:
    return Launch(
        name="up",
        kind="gemm",
        shape="",
        read=2 * (rows * depth + depth * columns),
        written=2 * rows * columns,
        flops=2 * rows * columns * depth,
        dtype="bf16",
        sizes=(1, rows, columns, depth),
    )


def test_a_stream_takes_its_bytes_over_the_bandwidth() -> None:
    stream = Launch(name="x", kind="fusion", shape="", read=3 * 10**9, written=10**9, flops=0)
    cost = price(replace(stream, count=5), A100, IDEAL)
    assert cost.seconds == pytest.approx(5 * 4e9 / 2.039e12)
    assert cost.bound == "memory"


def test_a_product_that_fills_whole_waves_runs_at_the_peak() -> None:
    # 12 x 11 tiles of 128 x 128: one on each of an H100's 132 SMs.
    full = product(12 * 128, 11 * 128, 65536)
    assert price(full, H100, IDEAL).seconds == pytest.approx(full.flops / H100.bf16_flops)
    assert price(full, H100, IDEAL).bound == "compute"


def test_one_tile_more_takes_another_wave() -> None:
    full, more = (product(rows, 11 * 128, 65536) for rows in (12 * 128, 12 * 128 + 1))
    ratio = compute_seconds(more, H100, IDEAL) / compute_seconds(full, H100, IDEAL)
    assert ratio == pytest.approx(2)


def test_few_tiles_are_split_along_the_depth() -> None:
    small = product(128, 128, 65536)
    whole = compute_seconds(small, H100, IDEAL)
    split = compute_seconds(small, H100, replace(IDEAL, most_splits=8))
    assert split == pytest.approx(whole / 8)


def test_decode_products_are_bound_by_memory() -> None:
    cost = price(product(16, 14336, 4096), H100, Efficiencies())
    assert cost.bound == "memory"


def test_what_overlap_leaves_is_added() -> None:
    launch = product(256, 14336, 4096)
    apart = price(launch, H100, replace(IDEAL, overlap=0.0)).seconds
    memory = (launch.read + launch.written) / H100.bandwidth
    assert apart == pytest.approx(memory + compute_seconds(launch, H100, IDEAL))


def test_small_collectives_take_their_latency_and_large_ones_their_bytes() -> None:
    small = Launch(
        name="all-reduce", kind="collective", shape="", read=1024, written=1024, flops=0,
        num_devices=8,
    )  # fmt: skip
    rates = Efficiencies(collective=8e-6, ring_hop=1e-6, link=1.0)
    cheap = price(small, H100, rates)
    assert cheap.bound == "latency"
    assert cheap.seconds == pytest.approx(8e-6, rel=0.01)
    large = price(replace(small, read=10**9, written=10**9), H100, rates)
    assert large.bound == "link"
    assert large.seconds == pytest.approx(2 * 7 / 8 * 1e9 / 450e9, rel=0.02)


def test_attention_reads_each_live_page_once_per_kv_head() -> None:
    model = SHAPES["llama-3.1-8b"]
    load = StepLoad(num_decodes=10, chunk=0, context=1000)
    work = attention_work(model, load, devices=2, dtype="bfloat16")
    keys_and_values = 2 * 10 * 1000 * 4 * 128 * 2
    assert work.page_bytes == keys_and_values
    assert work.other_bytes == 2 * 10 * 16 * 128 * 2
    assert work.flops == 4 * 10 * 1000 * 16 * 128


def test_a_chunk_sees_what_came_before_it() -> None:
    load = StepLoad(num_decodes=0, chunk=3, context=5)
    assert load.query_keys == 3 + 4 + 5
    assert load.live_keys == 5
    assert (load.num_tokens, load.num_rows) == (3, 1)


def test_the_least_is_each_weight_once() -> None:
    model = SHAPES["llama-3.1-8b"]
    one_token = StepLoad(num_decodes=1, chunk=0, context=1)
    least = least_work(model, one_token, devices=1, dtype="bfloat16")
    without_embedding = model.num_parameters - model.vocab_size * model.hidden_size
    assert least.num_bytes == pytest.approx(2 * without_embedding, rel=1e-3)
    norms = (2 * model.num_layers + 1) * model.hidden_size
    attention = model.num_layers * 4 * 32 * 128
    assert least.flops == 2 * (without_embedding - norms) + attention
    shared = least_work(model, one_token, devices=8, dtype="bfloat16")
    assert shared.num_bytes == pytest.approx(least.num_bytes / 8, rel=1e-3)


def test_attention_is_filled_in_where_it_is_a_kernel_and_added_where_not() -> None:
    kernel = Launch(
        name="a", kind="attention", shape="", read=8, written=9, flops=0, count=4, pallas_name="a"
    )
    work = AttentionWork(page_bytes=1000, other_bytes=20, flops=50)
    (filled,), is_kernel = with_attention((kernel,), work, num_layers=4)
    assert is_kernel
    assert (filled.flops, filled.count) == (50, 4)
    assert (filled.read, filled.written) == (1008, 9)
    (added,), is_kernel = with_attention((), work, num_layers=4)
    assert not is_kernel
    assert (added.count, added.num_bytes, added.flops) == (4, 4080, 50)

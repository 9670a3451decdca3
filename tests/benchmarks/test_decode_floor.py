from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.decode_floor import DecodeCost, DecodeFloor
from benchmarks.weight_bytes import dense_weight_bytes, read_bytes_of_tensors
from fastgen_jax.models.shapes import SHAPES

SMOLLM2, LLAMA = SHAPES["smollm2-135m"], SHAPES["llama-3.1-8b"]


def cost_of(model, itemsize: int = 2) -> DecodeCost:
    weight_bytes = dense_weight_bytes(model, itemsize)
    return DecodeCost.of(model, weight_bytes=weight_bytes, kv_itemsize=itemsize)


def test_the_larger_floor_counts_and_is_named():
    assert DecodeFloor(memory=2.0, matmul=1.0, in_turn=2.5).seconds == 2.0
    assert DecodeFloor(memory=2.0, matmul=1.0, in_turn=2.5).bound == "memory"
    assert DecodeFloor(memory=2.0, matmul=3.0, in_turn=3.5).seconds == 3.0
    assert DecodeFloor(memory=2.0, matmul=3.0, in_turn=3.5).bound == "matmul"


def test_bytes_and_flops_of_smollm2():
    cost = cost_of(SMOLLM2)
    layer = 576 * 64 * (9 + 3 + 3 + 9) + 3 * 576 * 1536
    products = 30 * layer + 49152 * 576
    norms = 30 * 2 * 576 + 576
    assert cost.flops_per_row == 2 * products
    assert cost.weight_bytes == 2 * (products + norms)
    assert cost.kv_bytes_per_token == 2 * 30 * 3 * 64 * 2
    assert cost.flops_per_context_token == 30 * 9 * 64 * 2 * 2


def test_an_embedding_beside_a_head_is_only_looked_up():
    tied = replace(LLAMA, tie_word_embeddings=True)
    assert dense_weight_bytes(LLAMA, 2) == dense_weight_bytes(tied, 2)
    sizes = {"token_embd.weight": 100, "blk.0.attn_q.weight": 10}
    assert read_bytes_of_tensors(sizes) == 110
    assert read_bytes_of_tensors({**sizes, "output.weight": 50}) == 60


def test_floor_reads_weights_once_and_the_context_of_every_row():
    cost = DecodeCost(
        weight_bytes=1000, kv_bytes_per_token=10, flops_per_row=600, flops_per_context_token=3
    )
    floor = cost.floor(rows=4, context=50, read_rate=100.0, flop_rate=1000.0)
    assert floor.memory == pytest.approx((1000 + 4 * 50 * 10) / 100)
    assert floor.matmul == pytest.approx(4 * (600 + 50 * 3) / 1000)
    weights = max(1000 / 100, 4 * 600 / 1000)
    attention = max(4 * 50 * 10 / 100, 4 * 50 * 3 / 1000)
    assert floor.in_turn == pytest.approx(weights + attention)


def test_what_comes_in_turn_takes_longer_than_either_floor():
    cost = DecodeCost(
        weight_bytes=1000, kv_bytes_per_token=10, flops_per_row=6000, flops_per_context_token=3
    )
    floor = cost.floor(rows=4, context=50, read_rate=100.0, flop_rate=1000.0)
    assert floor.in_turn == pytest.approx(4 * 6000 / 1000 + 4 * 50 * 10 / 100)
    assert floor.in_turn > floor.seconds

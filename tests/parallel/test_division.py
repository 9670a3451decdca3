"""Which sizes of a mesh split a model, and what is repeated."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastgen_jax.errors import ConfigError
from fastgen_jax.models.config import ModelConfig, QueryKeyNorm, llama_config
from fastgen_jax.models.families.parts import all_sparse, mixture_of
from fastgen_jax.parallel.division import (
    check_divisible,
    fitting_tensor_sizes,
    kv_head_repeats,
    with_repeated_kv_heads,
)

MODEL = llama_config(
    vocab_size=96,
    hidden_size=24,
    intermediate_size=48,
    num_layers=2,
    num_heads=12,
    num_kv_heads=3,
    head_dim=4,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    tie_word_embeddings=False,
)
SPARSE = all_sparse(replace(MODEL, intermediate_size=7, moe=mixture_of(8, 2, 12)))


def test_sizes_that_divide_are_found() -> None:
    """Kv heads are shared out, or shared."""
    assert fitting_tensor_sizes(MODEL) == (1, 3, 6, 12)
    for tensor in (1, 3, 6, 12):
        check_divisible(MODEL, tensor)


@pytest.mark.parametrize("tensor", [0, 2, 4, 5, 24])
def test_other_sizes_are_refused_with_those_that_work(tensor: int) -> None:
    with pytest.raises(ConfigError, match=rf"tensor_parallel_size={tensor}: .*use one of 1, 3, 6"):
        check_divisible(MODEL, tensor)


@pytest.mark.parametrize(
    ("field", "size"),
    [("num_heads", 10), ("num_kv_heads", 4), ("intermediate_size", 46), ("vocab_size", 95)],
)
def test_the_error_names_what_does_not_divide(field: str, size: int) -> None:
    with pytest.raises(ConfigError, match=rf"the model's {field}={size} can't be split"):
        check_divisible(replace(MODEL, **{field: size}), 3)


@pytest.mark.parametrize(
    ("tensor", "heads", "repeats"), [(1, 3, 1), (3, 3, 1), (6, 6, 2), (12, 12, 4)]
)
def test_each_device_has_a_kv_head(tensor: int, heads: int, repeats: int) -> None:
    assert with_repeated_kv_heads(MODEL, tensor).num_kv_heads == heads
    assert kv_head_repeats(MODEL, tensor) == repeats
    check_divisible(with_repeated_kv_heads(MODEL, tensor), tensor)


def test_scales_of_each_kv_head_are_not_repeated() -> None:
    norm = QueryKeyNorm(norm=MODEL.norm, over="all_heads")
    model = replace(MODEL, attention=replace(MODEL.attention, query_key_norm=norm))
    assert fitting_tensor_sizes(model) == (1, 3)


def sizes(model: ModelConfig) -> list[tuple[int, int]]:
    found = []
    for tensor in range(1, 13):
        for expert in range(1, 13):
            try:
                check_divisible(model, tensor, expert)
            except ConfigError:
                continue
            found.append((tensor, expert))
    return found


def test_experts_and_what_else_there_is_divide_together() -> None:
    """12 heads and 96 tokens over all devices, 8 experts over some, 12 features over the others."""
    model = replace(SPARSE, num_kv_heads=12)
    divided = [
        (tensor, expert)
        for tensor in (1, 2, 3, 4, 6, 12)
        for expert in (1, 2, 4, 8)
        if 12 % (tensor * expert) == 0
    ]
    assert sizes(model) == divided
    assert len(divided) > 10


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (MODEL, "the model has no experts; leave it out"),
        (SPARSE, "8 experts can't be dealt out evenly .* use 1, 2, 4, 8"),
    ],
)
def test_experts_that_cannot_be_dealt_out_are_refused(model: ModelConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=f"expert_parallel_size=3: .*{message}"):
        check_divisible(model, 1, 3)


def test_parts_of_a_shared_expert_divide_too() -> None:
    assert SPARSE.moe is not None
    moe = replace(SPARSE.moe, shared_intermediate_size=8, has_shared_gate=True)
    with pytest.raises(ConfigError, match=r"moe\.shared_intermediate_size=8 can't be split"):
        check_divisible(replace(SPARSE, moe=moe), 3)

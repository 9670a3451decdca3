"""Which numbers of devices a model can be split over, and what is repeated where it must be."""

from __future__ import annotations

from dataclasses import replace

from fastgen_jax.errors import ConfigError
from fastgen_jax.models.config import ModelConfig

# Last parts of the names of weights that have something for every kv head.
KV_HEAD_WEIGHTS = frozenset(("k", "v", "k_bias", "v_bias"))


def check_divisible(model: ModelConfig, tensor: int, expert: int = 1) -> None:
    """Refuse sizes of the mesh that don't split the model evenly.

    Raises:
        ConfigError: names the sizes of the model that don't divide, and tensor sizes that work; or
            says that the model has no experts to deal out.
    """
    if expert > 1 and (model.moe is None or model.moe.num_experts % expert):
        count = 0 if model.moe is None else model.moe.num_experts
        raise ConfigError(
            f"the model's {count} experts can't be dealt out evenly to that many devices"
            if count
            else "the model has no experts",
            field="expert_parallel_size",
            value=expert,
            remedy="use " + ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
            if count
            else "leave it out",
        )
    broken = _obstacles(model, tensor, expert)
    if broken:
        fitting = ", ".join(str(size) for size in fitting_tensor_sizes(model, expert))
        beside = f" beside expert_parallel_size={expert}" if expert > 1 else ""
        raise ConfigError(
            f"the model's {', '.join(broken)} can't be split evenly over that many devices{beside}",
            field="tensor_parallel_size",
            value=tensor,
            remedy=f"use one of {fitting}" if fitting else "use a smaller expert_parallel_size",
        )


def fitting_tensor_sizes(model: ModelConfig, expert: int = 1) -> tuple[int, ...]:
    """Every tensor size that splits the model evenly, ascending."""
    sizes = range(1, model.num_heads + 1)
    return tuple(size for size in sizes if not _obstacles(model, size, expert))


def kv_head_repeats(model: ModelConfig, devices: int) -> int:
    """Devices that have the same kv head: 1 where there are as many heads as devices, or more."""
    return max(1, devices // model.num_kv_heads)


def with_repeated_kv_heads(model: ModelConfig, devices: int) -> ModelConfig:
    """The model with every kv head repeated, so that each device has one.

    Exact: the query heads of a group are dealt out among the copies of their head.
    """
    repeats = kv_head_repeats(model, devices)
    return model if repeats == 1 else replace(model, num_kv_heads=repeats * model.num_kv_heads)


def _obstacles(model: ModelConfig, tensor: int, expert: int) -> list[str]:
    """The sizes that don't divide, as "name=size"."""
    devices = tensor * expert
    sizes = {"num_heads": model.num_heads, "vocab_size": model.vocab_size}
    if not all(layer.is_sparse for layer in model.layers):
        sizes["intermediate_size"] = model.intermediate_size
    if model.moe is not None and model.moe.shared_intermediate_size is not None:
        sizes["moe.shared_intermediate_size"] = model.moe.shared_intermediate_size
    broken = [f"{name}={size}" for name, size in sizes.items() if devices < 1 or size % devices]
    heads = model.num_kv_heads
    is_whole = devices > 0 and (heads % devices == 0 or devices % heads == 0)
    # A scale for each kv head isn't repeated with it.
    norm = model.attention.query_key_norm
    is_repeated_norm = norm is not None and norm.over != "head" and devices > heads
    if not is_whole or is_repeated_norm:
        broken.append(f"num_kv_heads={heads}")
    if model.moe is not None and (tensor < 1 or model.moe.intermediate_size % tensor):
        broken.append(f"moe.intermediate_size={model.moe.intermediate_size}")
    return broken

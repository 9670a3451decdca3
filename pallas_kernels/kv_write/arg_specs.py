"""The shapes that the write ships for, as data: what is compiled and measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_write.config import KvWriteConfig
from pallas_kernels.kv_write.reference import Rotation
from pallas_kernels.kv_write.select import select_write_config
from pallas_kernels.kv_write.shape import KvWriteShape, is_fp8
from pallas_kernels.target import Implementation, Target

DECODE_TOKENS = 256
STEP_TOKENS = 768


@dataclass(frozen=True, slots=True, kw_only=True)
class KvWriteSpec:
    """One write that somebody's model makes in every step.

    Attributes:
        name: model, what part of it one device has, what is special, and the step.
        shape: sizes, heads as one device has them.
    """

    name: str
    shape: KvWriteShape

    def config(
        self, target: Target, *, implementation: Implementation | None = None
    ) -> KvWriteConfig:
        """What ``select_write_config`` picks for the shape on a device."""
        return select_write_config(self.shape, target, implementation=implementation)

    def arguments(
        self, *, mesh: Mesh | None = None, heads_axis: str | None = None
    ) -> KvWriteArguments:
        """The call's arguments without their data.

        Args:
            mesh: gives every argument a sharding; None leaves that to jax.
            heads_axis: an axis of the mesh over which heads are spread. The arrays are then those
                of all its devices, each of which has this spec's heads, for use in a shard_map.
        """
        if heads_axis is not None and (mesh is None or heads_axis not in mesh.shape):
            raise ValueError(f"heads_axis={heads_axis!r}: must be an axis of the mesh {mesh}")
        devices = 1 if mesh is None or heads_axis is None else mesh.shape[heads_axis]
        shape = self.shape
        heads = shape.num_kv_heads * devices

        def array(sizes: tuple[int, ...], dtype: str, *axes: str | None) -> Any:
            sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec(*axes))
            return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype), sharding=sharding)

        pool = (shape.num_pages, heads, shape.page_size, shape.head_dim)
        pages = array(pool, shape.kv_dtype, None, heads_axis)
        values = array((shape.num_tokens, heads, shape.head_dim), shape.dtype, None, heads_axis)
        places = array((shape.num_tokens,), "int32")
        table = array((shape.num_tokens, shape.rotary_dim // 2), "float32")
        scales = array((heads,), "float32", heads_axis) if is_fp8(shape.kv_dtype) else None
        return KvWriteArguments(
            k_pages=pages,
            v_pages=pages,
            k=values,
            v=values,
            page_ids=places,
            slots=places,
            rotation=(table, table) if shape.rotary_dim else None,
            k_scales=scales,
            v_scales=scales,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class KvWriteArguments:
    """Arrays of one call of ``write_kv``, or their shapes; named as it names them."""

    k_pages: Float[Array, "N K S D"]
    v_pages: Float[Array, "N K S D"]
    k: Float[Array, "T K D"]
    v: Float[Array, "T K D"]
    page_ids: Int[Array, "T"]
    slots: Int[Array, "T"]
    rotation: Rotation | None
    k_scales: Float[Array, "K"] | None = None
    v_scales: Float[Array, "K"] | None = None


def kv_write_specs() -> tuple[KvWriteSpec, ...]:
    """Every shape that the project ships for, in the order of the tables."""
    return tuple(
        replace(model, name=f"{model.name}, {label}", shape=replace(model.shape, num_tokens=tokens))
        for model in _models()
        for label, tokens in (("256 decodes", DECODE_TOKENS), ("768 tokens", STEP_TOKENS))
    )


def _models() -> tuple[KvWriteSpec, ...]:
    return (
        _model("Llama-3.1-8B", kv_heads=8),
        _model("Llama-3.1-8B, fp8 pages", kv_heads=8, kv_dtype="float8_e4m3fn"),
        _model("Llama-3.1-8B TP8", kv_heads=1),
        _model("Llama-2-70B TP4", kv_heads=2),
        _model("Llama-2-13B", kv_heads=40),
        _model("SmolLM2-135M", kv_heads=3, head_dim=64),
        _model("Phi-3-mini", kv_heads=32, head_dim=96),
        _model("Phi-2", kv_heads=32, head_dim=80, rotary_dim=32),
        _model("Gemma-2-9B", kv_heads=8, head_dim=256),
        _model("gpt-oss", kv_heads=8, head_dim=64),
    )


def _model(
    name: str,
    *,
    kv_heads: int,
    head_dim: int = 128,
    rotary_dim: int | None = None,
    kv_dtype: str = "bfloat16",
) -> KvWriteSpec:
    return KvWriteSpec(
        name=name,
        shape=KvWriteShape(
            num_tokens=DECODE_TOKENS,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            rotary_dim=head_dim if rotary_dim is None else rotary_dim,
            num_pages=4096,
            page_size=16,
            dtype="bfloat16",
            kv_dtype=kv_dtype,
        ),
    )

"""The shapes that the attention ships for, as data: what is compiled, tuned and measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from pallas_kernels.ragged_paged_attention.batch import RaggedBatch
from pallas_kernels.ragged_paged_attention.config import AttentionConfig
from pallas_kernels.ragged_paged_attention.options import AttentionOptions
from pallas_kernels.ragged_paged_attention.select import select_config
from pallas_kernels.ragged_paged_attention.shape import AttentionShape
from pallas_kernels.ragged_paged_attention.work import AttentionWork, plan_work
from pallas_kernels.target import Implementation, Target

CONTEXT = 8192  # keys that a row's block table has room for
DECODE_ROWS = 256
STEP_TOKENS = 768


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """One attention call that somebody's model makes in every step.

    Attributes:
        name: model, what part of it one device has, what is special, and the step.
        shape: sizes, heads as one device has them.
        options: what is done to the scores.
        has_sinks: whether each query head has one more key of value 0.
        num_pages: pages of the pool (N); changes no kernel.
    """

    name: str
    shape: AttentionShape
    options: AttentionOptions
    has_sinks: bool = False
    num_pages: int = 4096

    @property
    def has_scales(self) -> bool:
        """Whether pages hold 8-bit numbers with a scale."""
        return self.shape.kv_dtype != self.shape.dtype

    def config(
        self, target: Target, *, implementation: Implementation | None = None
    ) -> AttentionConfig:
        """What ``select_config`` picks for the shape on a device."""
        return select_config(self.shape, target, implementation=implementation)

    def arguments(
        self, config: AttentionConfig, *, mesh: Mesh | None = None, heads_axis: str | None = None
    ) -> AttentionArguments:
        """The call's arguments without their data.

        Args:
            config: decides how the work is laid out.
            mesh: gives every argument a sharding; None leaves that to jax.
            heads_axis: an axis of the mesh over which heads are spread. The arrays are then those
                of all its devices, each of which has this spec's heads, for use in a shard_map.
        """
        if heads_axis is not None and (mesh is None or heads_axis not in mesh.shape):
            raise ValueError(f"heads_axis={heads_axis!r}: must be an axis of the mesh {mesh}")
        devices = 1 if mesh is None or heads_axis is None else mesh.shape[heads_axis]
        shape = self.shape
        heads, kv_heads = shape.num_heads * devices, shape.num_kv_heads * devices

        def array(sizes: tuple[int, ...], dtype: str, *axes: str | None) -> Any:
            sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec(*axes))
            return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype), sharding=sharding)

        def per_head(count: int) -> Any:
            return array((count,), "float32", heads_axis)

        rows = array((shape.num_rows,), "int32")
        batch = RaggedBatch(
            query_start=rows,
            query_len=rows,
            kv_len=rows,
            block_tables=array((shape.num_rows, shape.pages_per_row), "int32"),
            num_single_rows=array((), "int32"),
            num_rows=array((), "int32"),
        )
        work = jax.eval_shape(
            lambda batch: plan_work(batch, shape=shape, config=config, window=self.options.window),
            batch,
        )
        pages = (self.num_pages, kv_heads, shape.page_size, shape.head_dim)
        return AttentionArguments(
            q=array((shape.num_tokens, heads, shape.head_dim), shape.dtype, None, heads_axis),
            k_pages=array(pages, shape.kv_dtype, None, heads_axis),
            v_pages=array(pages, shape.kv_dtype, None, heads_axis),
            work=jax.tree.map(lambda leaf: array(leaf.shape, str(leaf.dtype)), work),
            sinks=per_head(heads) if self.has_sinks else None,
            k_scales=per_head(kv_heads) if self.has_scales else None,
            v_scales=per_head(kv_heads) if self.has_scales else None,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionArguments:
    """Arrays of one call of ``ragged_paged_attention``, or their shapes; named as it names them."""

    q: Float[Array, "T H D"]
    k_pages: Float[Array, "N K S D"]
    v_pages: Float[Array, "N K S D"]
    work: AttentionWork
    sinks: Float[Array, "H"] | None = None
    k_scales: Float[Array, "K"] | None = None
    v_scales: Float[Array, "K"] | None = None


def attention_specs() -> tuple[AttentionSpec, ...]:
    """Every shape that the project ships for, in the order of the tables.

    Each model has two: a step of 256 decodes, and a full step of 768 tokens.
    """
    return tuple(
        replace(model, name=f"{model.name}, {label}", shape=replace(model.shape, num_tokens=tokens))
        for model in _models()
        for label, tokens in (("256 decodes", DECODE_ROWS), ("768 tokens", STEP_TOKENS))
    )


def find_specs(names: tuple[str, ...]) -> tuple[AttentionSpec, ...]:
    """The specs whose names contain one of ``names``; all without names.

    Raises:
        ValueError: one of the names fits no spec.
    """
    specs = attention_specs()
    for name in names:
        if not any(name in spec.name for spec in specs):
            raise ValueError(
                f"spec={name!r} is part of no name; there are: "
                + "; ".join(spec.name for spec in specs)
            )
    return tuple(s for s in specs if not names or any(name in s.name for name in names))


def _models() -> tuple[AttentionSpec, ...]:
    llama = _model("Llama-3.1-8B", heads=32, kv_heads=8)
    return (
        llama,
        *(
            _model(f"Llama-3.1-8B, pages of {size}", heads=32, kv_heads=8, page_size=size)
            for size in (32, 64, 128)
        ),
        _model("Llama-3.1-8B, fp8 pages", heads=32, kv_heads=8, kv_dtype="float8_e4m3fn"),
        _model("Llama-3.1-8B, float16", heads=32, kv_heads=8, dtype="float16"),
        _model("Llama-3.1-8B TP8", heads=4, kv_heads=1),
        _model("Llama-2-70B TP4", heads=16, kv_heads=2),
        _model("Llama-2-70B TP8", heads=8, kv_heads=1),
        _model("Llama-2-13B", heads=40, kv_heads=40),
        _model("Qwen2.5-7B", heads=28, kv_heads=4),
        _model("SmolLM2-135M", heads=9, kv_heads=3, head_dim=64),
        _model("Phi-3-mini", heads=32, kv_heads=32, head_dim=96),
        _model("Phi-2", heads=32, kv_heads=32, head_dim=80),
        _model("gpt-oss", heads=64, kv_heads=8, head_dim=64, has_sinks=True),
        _model("gpt-oss, window", heads=64, kv_heads=8, head_dim=64, has_sinks=True, window=128),
        _model("Gemma-2-9B", heads=16, kv_heads=8, head_dim=256, softcap=50.0),
        _model("Gemma-2-9B, window", heads=16, kv_heads=8, head_dim=256, softcap=50.0, window=4096),
    )


def _model(
    name: str,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int = 128,
    page_size: int = 16,
    dtype: str = "bfloat16",
    kv_dtype: str | None = None,
    softcap: float | None = None,
    window: int | None = None,
    has_sinks: bool = False,
) -> AttentionSpec:
    return AttentionSpec(
        name=name,
        shape=AttentionShape(
            num_tokens=DECODE_ROWS,
            num_rows=DECODE_ROWS,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            page_size=page_size,
            pages_per_row=CONTEXT // page_size,
            dtype=dtype,
            kv_dtype=kv_dtype or dtype,
        ),
        options=AttentionOptions(scale=head_dim**-0.5, softcap=softcap, window=window),
        has_sinks=has_sinks,
    )

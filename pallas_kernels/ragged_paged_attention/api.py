"""The public attention call: arguments checked, then the implementation that the config names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_write.reference import Rotation, rotate
from pallas_kernels.layer_pages import LayerPages
from pallas_kernels.ragged_paged_attention.config import (
    AttentionConfig,
    AttentionNative,
    HopperConfig,
    KernelConfig,
    ReferenceConfig,
)
from pallas_kernels.ragged_paged_attention.native import (
    NativeWork,
    ragged_paged_attention_native,
)
from pallas_kernels.ragged_paged_attention.options import AttentionOptions
from pallas_kernels.ragged_paged_attention.reference import ragged_paged_attention_reference
from pallas_kernels.ragged_paged_attention.shape import AttentionShape
from pallas_kernels.ragged_paged_attention.units import KernelWork
from pallas_kernels.ragged_paged_attention.work import AttentionWork, ItemWork


def ragged_paged_attention(
    q: Float[Array, "T H D"],
    k_pages: Float[Array, "N K S D"],
    v_pages: Float[Array, "N K S D"],
    work: AttentionWork,
    *,
    options: AttentionOptions,
    config: AttentionConfig,
    sinks: Float[Array, "H"] | None = None,
    k_scales: Float[Array, "K"] | None = None,
    v_scales: Float[Array, "K"] | None = None,
    layer_pages: LayerPages | None = None,
    rotation: Rotation | None = None,
    window: Int[Array, ""] | None = None,
) -> Float[Array, "T H D"]:
    """Causal attention of a step's queries over their rows' pages.

    A query at position p sees the keys of positions 0 to p, or the last ``options.window`` of
    them; the step's own keys must be in the pages already. ``work`` comes from ``plan_work`` with
    the same config and window, once for all layers. What tokens of no row hold is undefined.

    Args:
        q: queries, those of a row side by side.
        k_pages: keys; 8-bit ones need ``k_scales`` and ``v_scales``.
        v_pages: values.
        work: what to attend.
        options: scale, window and softcap.
        config: sizes; its class is the implementation, see ``select_config``.
        sinks: score of one more key of value 0 for each head (gpt-oss); not scaled, not capped.
        k_scales: factor of each kv head's stored keys.
        v_scales: factor of each kv head's stored values.
        layer_pages: which layer's pages to read, of a pool that holds several end to end.
        rotation: cosines and sines of every token, float32 [T, D2]: the queries come unrotated.
            The first D2 numbers of each are rotated against the next D2, in float32, and rounded
            to q's dtype where a kernel can't go on in float32.
        window: used instead of the one in ``options``, int32, at least 1: for a loop over layers
            that differ in it. Native kernel and reference take it.

    Raises:
        ValueError: arguments that don't fit together; the message names them.
    """
    _check_shapes(q, k_pages, v_pages)
    _check_extras(q, k_pages, sinks, k_scales, v_scales)
    _check_rotation(q, rotation)
    if isinstance(config, AttentionNative):
        if not isinstance(work, NativeWork):
            raise _foreign_work(work, config)
        return ragged_paged_attention_native(
            q,
            k_pages,
            v_pages,
            work,
            layer_pages=layer_pages,
            options=options,
            sinks=sinks,
            k_scales=k_scales,
            v_scales=v_scales,
            rotation=rotation,
            window=window,
        )
    if rotation is not None:
        q = rotate(q, rotation)
    if isinstance(config, ReferenceConfig):
        if not isinstance(work, ItemWork):
            raise _foreign_work(work, config)
        return ragged_paged_attention_reference(
            q,
            k_pages,
            v_pages,
            work,
            first_page=jnp.int32(0) if layer_pages is None else layer_pages.first_page,
            options=options,
            config=config,
            sinks=sinks,
            k_scales=k_scales,
            v_scales=v_scales,
            window=options.window if window is None else window,
        )
    if not isinstance(work, KernelWork):
        raise _foreign_work(work, config)
    if window is not None:
        raise ValueError("window: a kernel for GPUs takes it as a number, in options")
    if layer_pages is not None:
        work = replace(work, block_tables=work.block_tables + layer_pages.first_page)
    return _kernel(config)(
        q,
        k_pages,
        v_pages,
        work,
        shape=_shape_of(q, k_pages, work),
        options=options,
        config=config,
        sinks=sinks,
        k_scales=k_scales,
        v_scales=v_scales,
    )


def _kernel(config: KernelConfig) -> Any:
    # Imported where they are wanted: Pallas's back ends take a second, and a CPU needs neither.
    if isinstance(config, HopperConfig):
        from pallas_kernels.ragged_paged_attention.mosaic_gpu_sm90 import (
            ragged_paged_attention_sm90,
        )

        return ragged_paged_attention_sm90
    from pallas_kernels.ragged_paged_attention.triton import ragged_paged_attention_triton

    return ragged_paged_attention_triton


def _shape_of(q: Array, k_pages: Array, work: KernelWork) -> AttentionShape:
    num_rows, pages_per_row = work.block_tables.shape
    return AttentionShape(
        num_tokens=q.shape[0],
        num_rows=num_rows,
        num_heads=q.shape[1],
        num_kv_heads=k_pages.shape[1],
        head_dim=q.shape[2],
        page_size=k_pages.shape[2],
        pages_per_row=pages_per_row,
        dtype=str(q.dtype),
        kv_dtype=str(k_pages.dtype),
    )


def _check_shapes(q: Array, k_pages: Array, v_pages: Array) -> None:
    if k_pages.shape != v_pages.shape:
        raise ValueError(f"k_pages {k_pages.shape} and v_pages {v_pages.shape} differ in shape")
    if q.ndim != 3 or k_pages.ndim != 4:
        raise ValueError(f"q {q.shape} must be [T, H, D] and k_pages {k_pages.shape} [N, K, S, D]")
    if q.shape[2] != k_pages.shape[3] or q.shape[1] % k_pages.shape[1] != 0:
        raise ValueError(
            f"q {q.shape} doesn't fit k_pages {k_pages.shape}: D must be equal, H a multiple of K"
        )


def _check_extras(
    q: Array,
    k_pages: Array,
    sinks: Array | None,
    k_scales: Array | None,
    v_scales: Array | None,
) -> None:
    if sinks is not None and sinks.shape != (q.shape[1],):
        raise ValueError(f"sinks {sinks.shape} must hold one number for each of {q.shape[1]} heads")
    if (k_scales is None) != (v_scales is None):
        raise ValueError("k_scales and v_scales go together: give both or neither")
    for name, scales in (("k_scales", k_scales), ("v_scales", v_scales)):
        if scales is not None and scales.shape != (k_pages.shape[1],):
            raise ValueError(
                f"{name} {scales.shape} must hold a number for each of {k_pages.shape[1]} kv heads"
            )


def _check_rotation(q: Array, rotation: Rotation | None) -> None:
    if rotation is None:
        return
    for name, table in zip(("cos", "sin"), rotation, strict=True):
        is_table = str(table.dtype) == "float32" and table.ndim == 2
        if not is_table or table.shape[0] != q.shape[0] or 2 * table.shape[1] > q.shape[2]:
            raise ValueError(
                f"{name} {table.dtype}{table.shape}: must be float32 [T, D2] with T={q.shape[0]} "
                f"and 2 * D2 up to D={q.shape[2]}"
            )
    if rotation[0].shape != rotation[1].shape:
        raise ValueError(f"cos {rotation[0].shape} and sin {rotation[1].shape} differ in shape")


def _foreign_work(work: object, config: AttentionConfig) -> ValueError:
    return ValueError(
        f"work is {type(work).__name__}, which isn't for {type(config).__name__}: "
        "plan it with the same config"
    )

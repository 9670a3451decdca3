"""The attention by the CPU's own kernel."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_write.reference import Rotation
from pallas_kernels.layer_pages import LayerPages
from pallas_kernels.native import native_library, native_obstacle
from pallas_kernels.ragged_paged_attention.batch import RaggedBatch
from pallas_kernels.ragged_paged_attention.options import AttentionOptions

TARGET = "fastgen_attention"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class NativeWork:
    """What the native kernel attends: the batch as it is, which the kernel cuts up itself.

    Attributes:
        query_start: first token of the row, int32 [R].
        query_len: queries of the row, int32 [R]; 0 for rows without work.
        kv_len: keys of the row, those of this step included, int32 [R].
        block_tables: pages of each row, int32 [R, P].
        num_rows: int32 [].
    """

    query_start: Int[Array, "R"]
    query_len: Int[Array, "R"]
    kv_len: Int[Array, "R"]
    block_tables: Int[Array, "R P"]
    num_rows: Int[Array, ""]


def native_work(batch: RaggedBatch) -> NativeWork:
    """The work of a ragged batch: nothing is computed."""
    return NativeWork(
        query_start=batch.query_start,
        query_len=batch.query_len,
        kv_len=batch.kv_len,
        block_tables=batch.block_tables,
        num_rows=batch.num_rows,
    )


def ragged_paged_attention_native(
    q: Float[Array, "T H D"],
    k_pages: Float[Array, "N K S D"],
    v_pages: Float[Array, "N K S D"],
    work: NativeWork,
    *,
    layer_pages: LayerPages | None,
    options: AttentionOptions,
    sinks: Float[Array, "H"] | None = None,
    k_scales: Float[Array, "K"] | None = None,
    v_scales: Float[Array, "K"] | None = None,
    rotation: Rotation | None = None,
    window: Int[Array, ""] | None = None,
    target: str = TARGET,
) -> Float[Array, "T H D"]:
    """What each query sees of its row's keys; nothing is written for tokens of no row.

    Everything is computed in float32, the rotation of the queries included. ``window`` is used
    instead of the one in ``options``. ``target`` is the name under which the kernel is registered
    with XLA.

    Raises:
        RuntimeError: there are no native kernels here.
    """
    if native_library() is None:
        raise RuntimeError(f"there are no native kernels here: {native_obstacle()}")
    extras: list[Array] = []
    if sinks is not None:
        extras.append(sinks.astype(jnp.float32))
    if k_scales is not None and v_scales is not None:
        extras += [k_scales.astype(jnp.float32), v_scales.astype(jnp.float32)]
    if rotation is not None:
        extras += rotation
    call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(q.shape, q.dtype))
    return call(
        q,
        k_pages,
        v_pages,
        work.query_start,
        work.query_len,
        work.kv_len,
        work.block_tables,
        work.num_rows,
        jnp.int32(0) if layer_pages is None else layer_pages.layer,
        jnp.int32(options.window or 0) if window is None else window,
        *extras,
        pages_per_layer=np.int64(0 if layer_pages is None else layer_pages.pages_per_layer),
        scale=np.float32(options.scale),
        softcap=np.float32(options.softcap or 0),
        has_sinks=sinks is not None,
        has_scales=k_scales is not None,
        has_rotation=rotation is not None,
    )

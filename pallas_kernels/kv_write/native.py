"""The write to the pages by the CPU's own kernel, which changes them in place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_write.reference import Rotation
from pallas_kernels.layer_pages import LayerPages
from pallas_kernels.native import native_library, native_obstacle

TARGET = "fastgen_kv_write"


def write_kv_native(
    k_pages: Float[Array, "N K S D"],
    v_pages: Float[Array, "N K S D"],
    k: Float[Array, "T K D"],
    v: Float[Array, "T K D"],
    page_ids: Int[Array, "T"],
    slots: Int[Array, "T"],
    *,
    rotation: Rotation | None = None,
    k_scales: Float[Array, "K"] | None = None,
    v_scales: Float[Array, "K"] | None = None,
    num_tokens: Int[Array, ""] | None = None,
    layer_pages: LayerPages | None = None,
) -> tuple[Float[Array, "N K S D"], Float[Array, "N K S D"]]:
    """Both page arrays with every token written; see ``api.write_kv``.

    The results are the pages' own memory: where a caller goes on using the old pages, XLA copies
    them first.

    Raises:
        RuntimeError: there are no native kernels here.
    """
    if native_library() is None:
        raise RuntimeError(f"there are no native kernels here: {native_obstacle()}")
    count = jnp.int32(k.shape[0]) if num_tokens is None else num_tokens.astype(jnp.int32)
    extras: list[Array] = [] if rotation is None else list(rotation)
    has_scales = k_scales is not None or v_scales is not None
    if has_scales:
        ones = jnp.ones(k.shape[1], jnp.float32)
        extras += [ones if scales is None else scales for scales in (k_scales, v_scales)]
    call = jax.ffi.ffi_call(
        TARGET,
        (
            jax.ShapeDtypeStruct(k_pages.shape, k_pages.dtype),
            jax.ShapeDtypeStruct(v_pages.shape, v_pages.dtype),
        ),
        input_output_aliases={0: 0, 1: 1},
    )
    written_k, written_v = call(
        k_pages,
        v_pages,
        k,
        v,
        page_ids,
        slots,
        count,
        jnp.int32(0) if layer_pages is None else layer_pages.layer,
        *extras,
        pages_per_layer=np.int64(0 if layer_pages is None else layer_pages.pages_per_layer),
        has_rotation=rotation is not None,
        has_scales=has_scales,
    )
    return written_k, written_v

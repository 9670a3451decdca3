"""The write to the pages in plain XLA: in-place scatters when the pages are donated."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.kv_write.config import KvWriteReference
from pallas_kernels.kv_write.shape import is_fp8

Rotation = tuple[Float[Array, "T D2"], Float[Array, "T D2"]]


def write_kv_reference(
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
    config: KvWriteReference,
) -> tuple[Float[Array, "N K S D"], Float[Array, "N K S D"]]:
    """Both page arrays with every token written; see ``api.write_kv``."""
    if rotation is not None:
        k = rotate(k, rotation, keep_float32=is_fp8(str(k_pages.dtype)))
    k, v = _scaled(k, k_scales, k_pages), _scaled(v, v_scales, v_pages)
    if config.drop_padding:
        places = (_without_padding(page_ids, k_pages.shape[0]), slots)
        return _scatter_real_tokens(k_pages, k, *places), _scatter_real_tokens(v_pages, v, *places)
    k_pages = scatter_into_pages(k_pages, k, page_ids, slots)
    return k_pages, scatter_into_pages(v_pages, v, page_ids, slots)


def scatter_into_pages(
    pages: Float[Array, "N K S D"],
    values: Float[Array, "T K D"],
    page_ids: Int[Array, "T"],
    slots: Int[Array, "T"],
) -> Float[Array, "N K S D"]:
    """Pages with token t's values at ``[page_ids[t], :, slots[t]]``.

    Tokens that pad the step all name page 0, the null page: what it holds is never read unmasked.
    """
    return pages.at[page_ids, :, slots].set(values.astype(pages.dtype), mode="promise_in_bounds")


def _without_padding(page_ids: Int[Array, "T"], num_pages: int) -> Int[Array, "T"]:
    """Page ids where every token of page 0 has a page of its own beyond the pool."""
    beyond = num_pages + jnp.arange(page_ids.shape[0], dtype=page_ids.dtype)
    return jnp.where(page_ids == 0, beyond, page_ids)


def _scatter_real_tokens(
    pages: Float[Array, "N K S D"],
    values: Float[Array, "T K D"],
    page_ids: Int[Array, "T"],
    slots: Int[Array, "T"],
) -> Float[Array, "N K S D"]:
    target = pages.at[page_ids, :, slots]
    return target.set(values.astype(pages.dtype), mode="drop", unique_indices=True)


def rotate(
    k: Float[Array, "T K D"], rotation: Rotation, *, keep_float32: bool = False
) -> Float[Array, "T K D"]:
    """Heads with their first 2 * D2 numbers rotated: in float32, rounded to k's dtype or not.

    ``keep_float32`` is for 8-bit pages, which get them without a rounding between.
    """
    cos, sin = (table[:, None] for table in rotation)
    half = cos.shape[-1]
    wide = k.astype(jnp.float32)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    rotated = [first * cos - second * sin, second * cos + first * sin, rest]
    result = jnp.concatenate(rotated, axis=-1)
    return result if keep_float32 else result.astype(k.dtype)


def _scaled(
    values: Float[Array, "T K D"], scales: Float[Array, "K"] | None, pages: Array
) -> Float[Array, "T K D"]:
    """Values as 8-bit pages hold them: divided by their head's scale, and within the range."""
    if not is_fp8(str(pages.dtype)):
        return values
    wide = values.astype(jnp.float32)
    if scales is not None:
        wide = wide / scales[None, :, None]
    limit = float(jnp.finfo(pages.dtype).max)
    return jnp.clip(wide, -limit, limit)

"""The public write: arguments checked, then the implementation that the configuration names."""

from __future__ import annotations

from jaxtyping import Array, Float, Int

from pallas_kernels.kv_write.config import (
    KvWriteConfig,
    KvWriteMosaic,
    KvWriteNative,
    KvWriteTriton,
)
from pallas_kernels.kv_write.reference import Rotation, write_kv_reference
from pallas_kernels.kv_write.shape import is_fp8
from pallas_kernels.layer_pages import LayerPages


def write_kv(
    k_pages: Float[Array, "N K S D"],
    v_pages: Float[Array, "N K S D"],
    k: Float[Array, "T K D"],
    v: Float[Array, "T K D"],
    page_ids: Int[Array, "T"],
    slots: Int[Array, "T"],
    *,
    rotation: Rotation | None,
    k_scales: Float[Array, "K"] | None = None,
    v_scales: Float[Array, "K"] | None = None,
    num_tokens: Int[Array, ""] | None = None,
    layer_pages: LayerPages | None = None,
    config: KvWriteConfig,
) -> tuple[Float[Array, "N K S D"], Float[Array, "N K S D"]]:
    """Pages with token t's rotated key and its value at ``[page_ids[t], :, slots[t]]``.

    The pages are changed in place where the caller's jit donates them. Tokens that pad the step
    name page 0, the null page, whose contents are unspecified afterwards; no two other tokens may
    name the same slot. Ids and slots must lie within the pages.

    ``rotation`` is the cosines and sines of every token, float32 [T, D2]: the first D2 numbers of
    a key are rotated against the next D2 (rotate-half; Su et al., 2021, section 3.4), in float32,
    and the rest passes through. None leaves the keys alone. ``k_scales`` and ``v_scales``, float32
    [K], belong to 8-bit pages: a head's numbers are divided by its scale, and what then is out of
    range takes the largest number that there is. ``num_tokens``, int32, says how many tokens there
    are, the rest being padding: the native kernel leaves it out. None: all. ``layer_pages`` says
    which layer's pages to write, of a pool that holds several end to end. The kernel is imported
    when it is called for, so the reference needs no GPU package.

    Raises:
        ValueError: arguments that don't fit together; the message names them.
    """
    _check_shapes(k_pages, v_pages, k, v, page_ids, slots)
    _check_rotation(k, rotation)
    _check_scales(k_pages, k_scales, "k_scales")
    _check_scales(v_pages, v_scales, "v_scales")
    if layer_pages is not None and not isinstance(config, KvWriteNative):
        page_ids = page_ids + layer_pages.first_page
    arrays = (k_pages, v_pages, k, v, page_ids, slots)
    if isinstance(config, KvWriteMosaic):
        from pallas_kernels.kv_write.mosaic_gpu import write_kv_mosaic

        return write_kv_mosaic(
            *arrays, rotation=rotation, k_scales=k_scales, v_scales=v_scales, config=config
        )
    if isinstance(config, KvWriteTriton):
        from pallas_kernels.kv_write.triton import write_kv_triton

        return write_kv_triton(
            *arrays, rotation=rotation, k_scales=k_scales, v_scales=v_scales, config=config
        )
    if isinstance(config, KvWriteNative):
        from pallas_kernels.kv_write.native import write_kv_native

        return write_kv_native(
            *arrays,
            rotation=rotation,
            k_scales=k_scales,
            v_scales=v_scales,
            num_tokens=num_tokens,
            layer_pages=layer_pages,
        )
    return write_kv_reference(
        *arrays, rotation=rotation, k_scales=k_scales, v_scales=v_scales, config=config
    )


def _check_shapes(
    k_pages: Array, v_pages: Array, k: Array, v: Array, page_ids: Array, slots: Array
) -> None:
    if k_pages.shape != v_pages.shape or k_pages.dtype != v_pages.dtype:
        raise ValueError(
            f"k_pages {k_pages.dtype}{k_pages.shape} and v_pages {v_pages.dtype}{v_pages.shape} "
            "differ: both must be [N, K, S, D] of one dtype"
        )
    if k.shape != v.shape or k.dtype != v.dtype:
        raise ValueError(
            f"k {k.dtype}{k.shape} and v {v.dtype}{v.shape} differ: "
            "both must be [T, K, D] of one dtype"
        )
    if k.ndim != 3 or k_pages.ndim != 4 or k.shape[1:] != k_pages.shape[1::2]:
        raise ValueError(
            f"k {k.shape} [T, K, D] doesn't fit k_pages {k_pages.shape} [N, K, S, D]: "
            "K and D must be equal"
        )
    for name, array in (("page_ids", page_ids), ("slots", slots)):
        if array.shape != k.shape[:1]:
            raise ValueError(f"{name} {array.shape}: must have one entry for each token {k.shape}")


def _check_rotation(k: Array, rotation: Rotation | None) -> None:
    if rotation is None:
        return
    for name, table in zip(("cos", "sin"), rotation, strict=True):
        if str(table.dtype) != "float32" or table.ndim != 2 or table.shape[0] != k.shape[0]:
            raise ValueError(f"{name} {table.dtype}{table.shape}: must be float32 [T, D2]")
    cos, sin = rotation
    if cos.shape != sin.shape or not 0 < 2 * cos.shape[1] <= k.shape[2]:
        raise ValueError(
            f"cos {cos.shape} and sin {sin.shape}: must be equal [T, D2] with "
            f"2 * D2 from 2 to D={k.shape[2]}; without rotation pass rotation=None"
        )


def _check_scales(pages: Array, scales: Array | None, name: str) -> None:
    if scales is None:
        return
    if not is_fp8(str(pages.dtype)):
        raise ValueError(f"{name} belongs to 8-bit pages, these are {pages.dtype}; leave it out")
    if str(scales.dtype) != "float32" or scales.shape != pages.shape[1:2]:
        raise ValueError(
            f"{name} {scales.dtype}{scales.shape}: must be float32 [K={pages.shape[1]}]"
        )

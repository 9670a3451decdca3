"""The public attention call: arguments checked, then the implementation for the device."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.ragged_paged_attention.config import ReferenceConfig
from pallas_kernels.ragged_paged_attention.reference import ragged_paged_attention_reference
from pallas_kernels.ragged_paged_attention.work import AttentionWork


def ragged_paged_attention(
    q: Float[Array, "T H D"],
    k_pages: Float[Array, "N K S D"],
    v_pages: Float[Array, "N K S D"],
    work: AttentionWork,
    *,
    scale: float,
    config: ReferenceConfig,
    first_page: Int[Array, ""] | None = None,
) -> Float[Array, "T H D"]:
    """Causal attention of a step's queries over their rows' pages.

    A query at position p sees the keys of positions 0 to p; the step's own keys must be in the
    pages already. ``work`` comes from ``plan_work`` with the same config, once for all layers.
    ``first_page`` is added to every page id, for a pool that holds several layers end to end; the
    sums must lie in [0, N).

    Raises:
        ValueError: shapes that don't fit together; the message names both.
    """
    _check_shapes(q, k_pages, v_pages)
    return ragged_paged_attention_reference(
        q,
        k_pages,
        v_pages,
        work,
        first_page=jnp.int32(0) if first_page is None else first_page,
        scale=scale,
        config=config,
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

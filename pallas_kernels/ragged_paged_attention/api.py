"""The public attention call: arguments checked, then the implementation for the device."""

from __future__ import annotations

from jaxtyping import Array, Float

from pallas_kernels.ragged_paged_attention.batch import RaggedBatch
from pallas_kernels.ragged_paged_attention.config import ReferenceConfig
from pallas_kernels.ragged_paged_attention.reference import ragged_paged_attention_reference


def ragged_paged_attention(
    q: Float[Array, "T H D"],
    k_pages: Float[Array, "N K S D"],
    v_pages: Float[Array, "N K S D"],
    batch: RaggedBatch,
    *,
    scale: float,
    config: ReferenceConfig | None = None,
) -> Float[Array, "T H D"]:
    """Causal attention of a step's queries over their rows' pages.

    Query i of a row stands at position ``kv_len - query_len + i`` and sees the keys up to there;
    the step's own keys must be in the pages already. Page ids must lie in [0, N).

    Raises:
        ValueError: shapes that don't fit together; the message names both.
    """
    _check_shapes(q, k_pages, v_pages)
    return ragged_paged_attention_reference(
        q, k_pages, v_pages, batch, scale=scale, config=config or ReferenceConfig()
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

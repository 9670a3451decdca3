"""What a write is about: the sizes that a configuration is chosen for."""

from __future__ import annotations

from dataclasses import dataclass

from pallas_kernels.target import FP8_DTYPES


def is_fp8(dtype: str) -> bool:
    """Whether values of this dtype are stored with a scale."""
    return dtype in FP8_DTYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class KvWriteShape:
    """Static sizes of one write, heads as one device sees them.

    Attributes:
        num_tokens: tokens of the step (T).
        num_kv_heads: key and value heads (K).
        head_dim: D.
        rotary_dim: numbers of a key that are rotated, 2 * D2; 0 for none.
        num_pages: pages of the pool (N).
        page_size: slots of a page (S).
        dtype: of the step's keys and values.
        kv_dtype: of the pages.
    """

    num_tokens: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    num_pages: int
    page_size: int
    dtype: str
    kv_dtype: str

    def __post_init__(self) -> None:
        """Refuse a rotation that doesn't fit the head."""
        if self.rotary_dim % 2 or not 0 <= self.rotary_dim <= self.head_dim:
            raise ValueError(
                f"rotary_dim={self.rotary_dim}: must be even and at most head_dim={self.head_dim}"
            )

    @property
    def pool_elements(self) -> int:
        """Numbers in one page array."""
        return self.num_pages * self.num_kv_heads * self.page_size * self.head_dim

"""What an attention call is about: the sizes that a configuration is chosen for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """Static sizes of one attention call, heads as one device sees them.

    Attributes:
        num_tokens: queries of the step (T).
        num_rows: request rows of the step (R).
        num_heads: query heads (H).
        num_kv_heads: key and value heads (K); divides H.
        head_dim: D.
        page_size: slots of a page (S).
        pages_per_row: width of the block tables (P).
        dtype: of queries and output.
        kv_dtype: of the pages.
    """

    num_tokens: int
    num_rows: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    pages_per_row: int
    dtype: str
    kv_dtype: str

    def __post_init__(self) -> None:
        """Refuse heads that can't be grouped."""
        if self.num_heads % self.num_kv_heads != 0:
            raise ValueError(
                f"num_heads={self.num_heads} is no multiple of num_kv_heads={self.num_kv_heads}"
            )

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.num_heads // self.num_kv_heads

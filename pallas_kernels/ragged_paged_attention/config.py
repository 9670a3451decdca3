"""Sizes that the attention's loops are cut to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceConfig:
    """Tile sizes of the XLA reference; they change its speed, not its result beyond rounding.

    Attributes:
        decode_keys: keys that a single-query row meets in one turn, cut to whole pages.
        decode_lanes: single-query rows in work at once.
        chunk_queries: queries of one tile of a prompt chunk.
        chunk_keys: keys that a tile meets in one turn, cut to whole pages.
    """

    decode_keys: int = 128
    decode_lanes: int = 8
    chunk_queries: int = 64
    chunk_keys: int = 128

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

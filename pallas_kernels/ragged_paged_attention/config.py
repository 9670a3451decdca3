"""Sizes that the attention's loops are cut to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceConfig:
    """Tile sizes of the XLA reference; they change its speed, not its result beyond rounding.

    Attributes:
        decode_keys: keys of one work unit of a single-query row; a multiple of the page size
            is taken.
        decode_units: work units computed in one loop turn.
        chunk_queries: queries of one tile of a prompt chunk.
        chunk_keys: keys that a tile meets in one loop turn.
    """

    decode_keys: int = 128
    decode_units: int = 8
    chunk_queries: int = 64
    chunk_keys: int = 256

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

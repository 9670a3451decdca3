"""How an implementation is cut to a shape; a configuration's class names its implementation."""

from __future__ import annotations

from dataclasses import dataclass

TILE_ROWS = 64  # rows of a warpgroup's matrix instruction: queries times heads of a group


def _check_positive(config: object) -> None:
    for name in config.__dataclass_fields__:  # pyright: ignore[reportAttributeAccessIssue]
        value = getattr(config, name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")


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
        _check_positive(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRule:
    """How a long row of keys is cut into splits that are attended at once and merged afterwards.

    The rule looks at the length of the row's own keys and at nothing else, so a row's result
    doesn't depend on the rest of the batch: a split has ``keys`` keys, doubled until no more than
    ``max_splits`` are needed.

    Attributes:
        keys: shortest split.
        max_splits: most splits of a row with one query; 1 never splits.
        max_tile_splits: most splits of a tile of a prompt chunk; 1 never splits.
    """

    keys: int = 1024
    max_splits: int = 8
    max_tile_splits: int = 1

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        _check_positive(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class HopperConfig:
    """Sizes of the Mosaic GPU kernel for compute capability 9.0.

    Attributes:
        block_keys: keys of one turn, a multiple of 16 that divides or is divided by the page size.
        stages: turns whose keys and values are in shared memory or on their way.
        streams: pairs of a loading and a computing warpgroup in a thread block.
        num_blocks: thread blocks of the persistent grid; one to a multiprocessor.
        splits: how long rows are cut.
    """

    block_keys: int = 64
    stages: int = 2
    streams: int = 2
    num_blocks: int = 132
    splits: SplitRule = SplitRule()

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        _check_positive(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonConfig:
    """Sizes of the Pallas-Triton kernel.

    Attributes:
        block_keys: keys of one turn, a multiple of 16 that divides or is divided by the page size.
        tile_rows: queries times heads of a group that a tile of a chunk holds, a power of two.
        num_warps: warps of a program.
        num_stages: depth of the compiler's software pipeline.
        splits: how long rows are cut.
    """

    block_keys: int = 64
    tile_rows: int = 64
    num_warps: int = 4
    num_stages: int = 2
    splits: SplitRule = SplitRule()

    def __post_init__(self) -> None:
        """Refuse sizes below 1."""
        _check_positive(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionNative:
    """The CPU's own kernel; its sizes follow from the registers it was compiled for."""


KernelConfig = HopperConfig | TritonConfig
AttentionConfig = ReferenceConfig | HopperConfig | TritonConfig | AttentionNative


def tile_rows(config: KernelConfig) -> int:
    """Queries times heads of a group that one tile of a chunk has room for."""
    return TILE_ROWS if isinstance(config, HopperConfig) else config.tile_rows

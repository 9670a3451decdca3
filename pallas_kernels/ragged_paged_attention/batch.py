"""Which queries of a step belong to which request row, and where its keys and values lie."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jaxtyping import Array, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedBatch:
    """The ragged layout of one step; every array has a fixed shape, lengths are data.

    Rows with a single query come first, so row r < num_single_rows owns exactly token r; the
    chunks follow in token order. Rows from num_rows on are padding.

    Attributes:
        query_start: first token of the row, int32 [R].
        query_len: queries of the row in this step, int32 [R]; 0 for padding rows.
        kv_len: keys of the row, those of this step included, int32 [R].
        block_tables: pages of the row in order of position, int32 [R, P]; 0 where none is.
        num_single_rows: int32 [].
        num_rows: int32 [].
    """

    query_start: Int[Array, "R"]
    query_len: Int[Array, "R"]
    kv_len: Int[Array, "R"]
    block_tables: Int[Array, "R P"]
    num_single_rows: Int[Array, ""]
    num_rows: Int[Array, ""]

"""A model of the paged cache: what every slot's keys and values depend on."""

from __future__ import annotations

import numpy as np

from fastgen_jax.kv.layout import NULL_BLOCK


class FakeCache:
    """Holds for every (block, slot) the hash of the tokens up to the one that was written there.

    Keys and values of a token depend on all tokens before it, so a slot is right for a reader
    just when these hashes agree.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._slots = np.full((num_blocks, block_size), -1, np.int64)
        self._written: dict[tuple[int, int], int] = {}  # of the step: slot to the row's index

    def begin_step(self) -> None:
        """Forget which slots the step before wrote."""
        self._written.clear()

    def check_table(self, table: np.ndarray, kv_len: int) -> None:
        """AssertionError unless the table has different blocks for kv_len tokens, then zeros."""
        held = np.flatnonzero(table != NULL_BLOCK)
        count = len(held)
        assert count == 0 or held[-1] == count - 1, f"a null block between others: {table}"
        needed = -(-kv_len // self.block_size)
        assert needed <= count, f"{kv_len} tokens need {needed} blocks, the table has {count}"
        blocks = table[:count]
        assert ((blocks > 0) & (blocks < self.num_blocks)).all(), f"no such block in {table}"
        assert len(np.unique(blocks)) == count, f"a block twice in one table: {table}"

    def write(self, index: int, table: np.ndarray, start: int, digests: np.ndarray) -> None:
        """Write positions [start, len(digests)) of the step's row ``index``."""
        for position in range(start, len(digests)):
            block, slot = int(table[position // self.block_size]), position % self.block_size
            other = self._written.setdefault((block, slot), index)
            assert other == index, f"rows {other} and {index} write slot {slot} of block {block}"
            self._slots[block, slot] = digests[position]

    def check_read(self, index: int, table: np.ndarray, digests: np.ndarray) -> None:
        """AssertionError unless the row finds its own history in its blocks."""
        count = len(digests)
        found = self._slots[table[: -(-count // self.block_size)]].reshape(-1)[:count]
        wrong = np.flatnonzero(found != digests)
        if len(wrong):
            position = int(wrong[0])
            block = int(table[position // self.block_size])
            state = "was never written" if found[position] == -1 else "holds other tokens"
            raise AssertionError(
                f"row {index} reads position {position} from block {block}, which {state} there"
            )

"""The pool of cache blocks: who holds them, which are free, which are findable."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from fastgen_jax.errors import ConfigError
from fastgen_jax.kv.layout import NULL_BLOCK, usable_blocks
from fastgen_jax.kv.prefix import PrefixIndex


class BlockPool:
    """Reference-counted blocks 1 to num_blocks - 1; block 0 is the null block.

    A block is held (count above 0) or free. A free block is empty, or cached: its content is
    still indexed, so that ``share`` can revive it. Empty blocks are handed out first, then cached
    ones, least recently released first.
    """

    __slots__ = ("_cached", "_counts", "_empty", "block_size", "caches_prefixes", "index")

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool) -> None:
        if num_blocks < 2:
            raise ConfigError(
                "leaves no block for requests beside the null block",
                field="num_blocks",
                value=num_blocks,
                remedy="give at least 2",
            )
        if block_size < 1:
            raise ConfigError("must be at least 1", field="block_size", value=block_size)
        self.block_size = block_size
        self.caches_prefixes = enable_prefix_caching
        self.index = PrefixIndex()
        self._counts = [0] * num_blocks
        self._empty = list(range(num_blocks - 1, NULL_BLOCK, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_blocks(self) -> int:
        """Blocks in the pool, the null block included."""
        return len(self._counts)

    @property
    def num_usable(self) -> int:
        """Blocks that requests can hold."""
        return usable_blocks(len(self._counts))

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now: empty or cached."""
        return len(self._empty) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Free blocks whose content is still findable."""
        return len(self._cached)

    @property
    def num_held(self) -> int:
        """Blocks with at least one holder."""
        return self.num_usable - self.num_free

    def num_holders(self, block_id: int) -> int:
        """How many times a block is held."""
        return self._counts[block_id]

    def num_free_among(self, block_ids: Iterable[int]) -> int:
        """How many of these blocks ``share`` would take off the free ones."""
        counts = self._counts
        return sum(1 for block_id in block_ids if not counts[block_id])

    def allocate(self, n: int) -> list[int]:
        """``n`` blocks, each held once, no longer findable under their old content."""
        empty = self._empty
        if n > len(empty) + len(self._cached):
            raise ValueError(f"{n} blocks asked for, {self.num_free} free: check num_free first")
        while n > len(empty):
            evicted, _ = self._cached.popitem(last=False)
            self.index.discard(evicted)
            empty.append(evicted)
        split = len(empty) - n
        taken = empty[split:]
        del empty[split:]
        counts = self._counts
        for block_id in taken:
            counts[block_id] = 1
        return taken

    def share(self, block_ids: Iterable[int]) -> None:
        """Hold blocks once more: found in the index, or held by somebody already."""
        counts = self._counts
        for block_id in block_ids:
            if not counts[block_id]:
                del self._cached[block_id]
            counts[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Give back one hold on each block, listed in order of position.

        The tail goes first, so that it is also the first to be evicted: the blocks that other
        sequences can share are at the front.
        """
        counts, cached, empty = self._counts, self._cached, self._empty
        findable = self.index.digest_of
        for block_id in reversed(block_ids):
            count = counts[block_id] - 1
            if count < 0:
                raise ValueError(f"block {block_id} released more often than held")
            counts[block_id] = count
            if count:
                continue
            if block_id in findable:
                cached[block_id] = None
            else:
                empty.append(block_id)

    def commit(self, digest: bytes, block_id: int) -> bool:
        """True if a held block is now findable; False if its content already is elsewhere."""
        return self.caches_prefixes and self.index.add(digest, block_id)

    def forget(self, block_ids: Iterable[int]) -> None:
        """Make blocks unfindable, held or free: their content can't be trusted."""
        for block_id in block_ids:
            if self.index.discard(block_id) and not self._counts[block_id]:
                del self._cached[block_id]
                self._empty.append(block_id)

    def reset_prefix_cache(self) -> None:
        """Make every block unfindable; holders keep theirs."""
        self.index.clear()
        self._empty.extend(self._cached)
        self._cached.clear()

    def check(self, tables: Iterable[Sequence[int]] | None = None) -> None:
        """Raise AssertionError unless every block is in exactly one place.

        With ``tables``, the block lists of all holders, counts must match them as well.
        """
        free = Counter((*self._empty, *self._cached))
        assert not free or max(free.values()) == 1, "a block is free twice"
        assert NULL_BLOCK not in free, "the null block is free"
        assert self._counts[NULL_BLOCK] == 0, "the null block is held"
        for block_id in range(NULL_BLOCK + 1, len(self._counts)):
            assert self._counts[block_id] >= 0, f"block {block_id} has a negative count"
            is_free = block_id in free
            assert is_free == (self._counts[block_id] == 0), f"block {block_id} is lost or double"
        assert all(block_id in self.index for block_id in self._cached), "cached, not indexed"
        assert not any(block_id in self.index for block_id in self._empty), "empty, yet indexed"
        assert NULL_BLOCK not in self.index, "the null block is indexed"
        self.index.check()
        if tables is not None:
            held = Counter(block_id for table in tables for block_id in table)
            for block_id, count in enumerate(self._counts):
                assert held[block_id] == count, f"block {block_id}: {held[block_id]} != {count}"

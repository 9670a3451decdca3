"""The block pool: conservation under any use, and who is evicted first."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastgen_jax.errors import ConfigError
from fastgen_jax.kv.pool import BlockPool
from fastgen_jax.kv.prefix import DIGEST_SIZE


def digest(i: int) -> bytes:
    return i.to_bytes(DIGEST_SIZE, "big")


def make_pool(num_blocks: int = 6) -> BlockPool:
    return BlockPool(num_blocks, 4, enable_prefix_caching=True)


def test_hands_out_every_block_but_the_null_block() -> None:
    pool = make_pool()
    assert sorted(pool.allocate(5)) == [1, 2, 3, 4, 5]
    assert pool.num_free == 0
    with pytest.raises(ValueError, match="1 blocks asked for, 0 free"):
        pool.allocate(1)


def test_released_content_stays_findable_till_reallocated() -> None:
    pool = make_pool()
    (block,) = pool.allocate(1)
    assert pool.commit(digest(1), block)
    pool.release([block])
    assert (pool.num_free, pool.num_cached) == (5, 1)
    assert pool.index.find(digest(1)) == block
    assert block not in pool.allocate(4)
    assert pool.allocate(1) == [block]
    assert pool.index.find(digest(1)) is None
    pool.check()


def test_evicts_least_recently_released_and_tails_first() -> None:
    pool = make_pool()
    old = pool.allocate(2)
    new = pool.allocate(3)
    for i, block in enumerate(old + new):
        pool.commit(digest(i), block)
    pool.release(old)
    pool.release(new)
    evicted = [pool.allocate(1)[0] for _ in range(5)]
    assert evicted == [old[1], old[0], new[2], new[1], new[0]]


def test_revived_block_counts_as_recent() -> None:
    pool = make_pool(3)
    a, b = pool.allocate(2)
    pool.commit(digest(1), a)
    pool.commit(digest(2), b)
    pool.release([a])
    pool.release([b])
    pool.share([a])
    pool.release([a])
    assert pool.allocate(1) == [b]


def test_shared_block_is_free_after_its_last_holder() -> None:
    pool = make_pool()
    (block,) = pool.allocate(1)
    pool.share([block])
    pool.release([block])
    assert pool.num_held == 1
    pool.release([block])
    assert pool.num_held == 0
    with pytest.raises(ValueError, match="released more often than held"):
        pool.release([block])


def test_forgotten_block_is_empty_not_cached() -> None:
    pool = make_pool()
    held, free = pool.allocate(2)
    pool.commit(digest(1), held)
    pool.commit(digest(2), free)
    pool.release([free])
    pool.forget([held, free, 5])
    assert pool.num_cached == 0
    assert pool.index.find(digest(1)) is pool.index.find(digest(2)) is None
    pool.check([[held]])


def test_without_caching_nothing_is_findable() -> None:
    pool = BlockPool(3, 4, enable_prefix_caching=False)
    (block,) = pool.allocate(1)
    assert not pool.commit(digest(1), block)
    pool.release([block])
    assert pool.num_cached == 0


@pytest.mark.parametrize(("num_blocks", "block_size"), [(1, 4), (0, 4), (4, 0)])
def test_refuses_sizes_that_hold_nothing(num_blocks: int, block_size: int) -> None:
    with pytest.raises(ConfigError):
        BlockPool(num_blocks, block_size, enable_prefix_caching=True)


class PoolMachine(RuleBasedStateMachine):
    """Any use of the pool, beside a model of who holds what and what was written where."""

    @initialize(num_blocks=st.integers(2, 9))
    def start(self, num_blocks: int) -> None:
        self.pool = make_pool(num_blocks)
        self.tables: list[list[int]] = []
        self.content: dict[int, int] = {}
        self.count = 0

    @rule(n=st.integers(0, 4))
    def allocate(self, n: int) -> None:
        if n > self.pool.num_free:
            with pytest.raises(ValueError, match="asked for"):
                self.pool.allocate(n)
            return
        blocks = self.pool.allocate(n)
        assert len(set(blocks)) == n
        assert not set(blocks) & {b for table in self.tables for b in table}
        for block in blocks:
            self.count += 1
            self.content[block] = self.count
        self.tables.append(blocks)

    @rule(data=st.data())
    @precondition(lambda self: self.tables)
    def commit(self, data: st.DataObject) -> None:
        for block in data.draw(st.sampled_from(self.tables)):
            self.pool.commit(digest(self.content[block]), block)

    @rule(data=st.data())
    @precondition(lambda self: self.tables)
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.pool.release(self.tables.pop(index))

    @rule(data=st.data())
    @precondition(lambda self: self.count)
    def share_found(self, data: st.DataObject) -> None:
        content = data.draw(st.integers(1, self.count))
        block = self.pool.index.find(digest(content))
        if block is not None:
            assert self.content[block] == content
            self.pool.share([block])
            self.tables.append([block])

    @rule(blocks=st.lists(st.integers(1, 8), max_size=3))
    def forget(self, blocks: list[int]) -> None:
        self.pool.forget(blocks)
        assert not any(block in self.pool.index for block in blocks)

    @rule()
    def reset(self) -> None:
        self.pool.reset_prefix_cache()
        assert self.pool.num_cached == 0

    @invariant()
    def conserved(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check(self.tables)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)

"""Block arithmetic, digests and the index."""

from __future__ import annotations

import pytest

from fastgen_jax.kv.layout import blocks_for, bytes_per_block, usable_tokens
from fastgen_jax.kv.prefix import DIGEST_SIZE, PrefixIndex, block_digest, root_digest


@pytest.mark.parametrize(
    ("num_tokens", "blocks"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (160, 10)]
)
def test_blocks_for(num_tokens: int, blocks: int) -> None:
    assert blocks_for(num_tokens, 16) == blocks


def test_bytes_per_block_counts_keys_and_values() -> None:
    got = bytes_per_block(num_layers=32, num_kv_heads=8, head_dim=128, itemsize=2, block_size=16)
    assert got == 16 * 128 * 1024  # Mistral-7B: 128 KiB per token


def test_null_block_holds_no_tokens() -> None:
    assert usable_tokens(5, 16) == 64


def test_digests_depend_on_tokens_parent_and_salt() -> None:
    roots = [root_digest(salt) for salt in (None, "", "a", "b")]
    children = [block_digest(root, tokens) for root in roots for tokens in ((1, 2), (2, 1), (258,))]
    grandchildren = [block_digest(child, (1, 2)) for child in children]
    digests = roots + children + grandchildren
    assert len(set(digests)) == len(digests)
    assert {len(digest) for digest in digests} == {DIGEST_SIZE}


def test_index_keeps_the_first_block_of_a_content() -> None:
    index = PrefixIndex()
    digests = [block_digest(root_digest(None), (i,)) for i in range(3)]
    assert index.add(digests[0], 7)
    assert not index.add(digests[0], 8)
    assert not index.add(digests[1], 7)
    assert index.find(digests[0]) == 7
    assert index.find(digests[1]) is None
    assert index.discard(7)
    assert not index.discard(7)
    assert index.find(digests[0]) is None
    index.check()


def test_a_run_ends_at_the_first_miss() -> None:
    index = PrefixIndex()
    digests = [bytes([i]) * DIGEST_SIZE for i in range(5)]
    for i in (0, 1, 3, 4):
        index.add(digests[i], i + 1)
    assert index.find_run(digests, 0, 5) == [1, 2]
    assert index.find_run(digests, 1, 5) == [2]
    assert index.find_run(digests, 0, 1) == [1]
    assert index.find_run(digests, 3, 99) == [4, 5]
    assert index.find_run(digests, 2, 5) == []

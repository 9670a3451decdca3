"""Decodes counted in columns: the same counts, blocks and ends as one request at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen_jax.kv.block_table import BlockTables
from fastgen_jax.kv.layout import blocks_for
from fastgen_jax.kv.pool import BlockPool
from fastgen_jax.request import Request
from fastgen_jax.scheduling.decoding import DecodingRows
from fastgen_jax.scheduling.plan import PlannedRow, PlannedRows
from tests.strategies import make_request

SIZE = 4


def make_rows(*lengths: int, end: int = 100) -> tuple[DecodingRows, list[Request], BlockTables]:
    """Requests that have computed so many tokens, in descending device rows."""
    tables = BlockTables(BlockPool(200, SIZE, enable_prefix_caching=True))
    rows = DecodingRows(len(lengths), tables)
    requests: list[Request] = []
    for index, length in enumerate(lengths):
        request = make_request(str(index), length)
        tables.open(request, [])
        request.row = len(lengths) - 1 - index
        request.num_computed_tokens, request.num_tokens = length, length + 1
        rows.add(request, end)
        requests.append(request)
    tables.take_changes()
    return rows, requests, tables


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 12))
def test_all_advance_by_a_token_a_step(lengths: list[int], num_steps: int) -> None:
    rows, requests, tables = make_rows(*lengths)
    for step in range(num_steps):
        free, needed = tables.pool.num_free, rows.num_new_blocks()
        planned, ended = rows.advance()
        assert tables.pool.num_free == free - needed
        assert not ended
        assert list(planned) == [
            PlannedRow(request, length + step, 1, True)
            for request, length in zip(requests, lengths, strict=True)
        ]
        assert planned.device_rows.tolist() == [request.row for request in requests]
        for request, length in zip(requests, lengths, strict=True):
            assert request.num_computed_tokens == length + step + 1
            assert request.num_tokens == length + step + 2
            assert len(request.block_ids) == blocks_for(request.num_computed_tokens, SIZE)


def test_some_advance_alone() -> None:
    rows, (a, b, c), _ = make_rows(3, 4, 5)
    planned, _ = rows.advance([c, a])
    assert [(row.request, row.start) for row in planned] == [(c, 5), (a, 3)]
    assert [request.num_computed_tokens for request in (a, b, c)] == [4, 4, 6]
    planned, _ = rows.advance()
    assert [row.start for row in planned] == [4, 4, 6]


def test_those_at_their_end_are_named() -> None:
    rows, (a, b), _ = make_rows(6, 7, end=9)
    assert rows.advance()[1] == [b]
    rows.remove(b)
    assert rows.advance()[1] == [a]


def test_who_leaves_keeps_its_counts_and_frees_its_row() -> None:
    rows, (a, b), _ = make_rows(6, 7)
    rows.advance()
    rows.remove(a)
    rows.advance()
    assert (a.num_computed_tokens, a.num_tokens) == (7, 8)
    assert (b.num_computed_tokens, b.num_tokens) == (9, 10)
    assert a not in rows
    assert list(rows) == [b]


def test_only_new_blocks_are_reported() -> None:
    rows, (a, b), tables = make_rows(3, 4)
    rows.advance()
    assert tables.take_changes() == ((b, 1),)
    rows.advance()
    assert tables.take_changes() == ((a, 1),)
    rows.advance()
    assert tables.take_changes() == ()


@pytest.mark.parametrize(("end", "expected"), [(5, 0), (6, 1), (9, 1), (10, 2)])
def test_who_will_need_another_block(end: int, expected: int) -> None:
    """The last of ``end`` tokens is never computed; a block holds 4 tokens, two hold 8."""
    assert make_rows(4, 8, end=end)[0].num_growing == expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 9))
def test_a_chain_is_as_many_steps_at_once(lengths: list[int], num_steps: int) -> None:
    chained, requests, tables = make_rows(*lengths, end=20)
    single, others, other_tables = make_rows(*lengths, end=20)
    assert chained.num_new_blocks(num_steps) <= tables.pool.num_free
    free = tables.pool.num_free
    needed = chained.num_new_blocks(num_steps)
    planned, ended = chained.advance(num_steps=num_steps)
    assert tables.pool.num_free == free - needed == other_tables.pool.num_free - needed
    for _ in range(num_steps - 1):
        single.advance()
    _, others_ended = single.advance()
    assert [row.start for row in planned] == lengths
    assert [r.request_id for r in ended] == [r.request_id for r in others_ended]
    for request, other in zip(requests, others, strict=True):
        assert request.num_tokens == other.num_tokens
        assert len(request.block_ids) == len(other.block_ids)


@pytest.mark.parametrize(
    ("limit", "end", "num_free", "expected"),
    [
        (1, 100, 50, 1),
        (4, 100, 50, 4),
        (4, 9, 50, 2),  # the second has computed 6 of the 8 tokens that it may
        (4, 8, 50, 1),
        (8, 100, 2, 4),  # the fifth would be the first's second new block
        (8, 100, 1, 2),  # the first needs a block at once, the second one after two tokens
    ],
)
def test_the_longest_chain(limit: int, end: int, num_free: int, expected: int) -> None:
    rows, _, tables = make_rows(4, 6, end=end)
    tables.pool.allocate(tables.pool.num_free - num_free)
    assert rows.longest_chain(limit) == expected


def test_nobody_is_no_special_case() -> None:
    rows, _, _ = make_rows()
    assert rows.num_new_blocks() == rows.num_growing == 0
    planned, ended = rows.advance()
    assert (list(planned), ended) == ([], [])


def test_planned_rows_are_a_sequence() -> None:
    requests = [make_request(name) for name in "abc"]
    rows = [PlannedRow(request, i, i + 1, i == 1) for i, request in enumerate(requests)]
    columns = PlannedRows.of(rows[:1]).followed_by(PlannedRows.of(rows[1:]))
    assert list(columns) == rows
    assert [columns[index] for index in range(3)] == rows
    assert columns[1:] == tuple(rows[1:])
    assert len(columns) == 3
    assert all(type(value) is int for row in columns for value in row[1:3])

"""How many tokens the messages of a stream bring."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen_jax.bench.live.sse import Message, count_tokens, parse_line


def texts(*lengths: int) -> list[Message]:
    return [Message(num_characters=length) for length in lengths]


@pytest.mark.parametrize("line", ["", ": keep-alive", "event: x", "id: 3"])
def test_other_lines_say_nothing(line: str) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize(
    ("lengths", "total", "sizes"),
    [
        ((4, 4, 4), None, [1, 1, 1]),
        ((4, 4, 4), 3, [1, 1, 1]),
        ((2, 8, 2), 5, [1, 3, 1]),  # the long one held two more
        ((0, 3, 3), 2, [0, 1, 1]),  # the one without text was no token
        ((3, 3, 3), 2, [1, 1, 0]),
        ((0, 0), 4, [2, 2]),
        ((), 0, []),
    ],
)
def test_what_the_total_says_beyond_one_each(
    lengths: tuple[int, ...], total: int | None, sizes: list[int]
) -> None:
    found, counting = count_tokens(texts(*lengths), total)
    assert found == sizes
    assert counting == ("messages" if total is None or not lengths else "usage")


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(0, 100))
def test_the_servers_total_is_kept_whatever_the_messages(lengths: list[int], total: int) -> None:
    sizes, _ = count_tokens(texts(*lengths), total)
    assert sum(sizes) == total
    assert min(sizes) >= 0


def test_an_end_without_text_is_no_token() -> None:
    assert not Message(num_characters=0, is_last=True).has_token
    assert Message(num_characters=0).has_token  # text held back
    assert Message(num_characters=1, is_last=True).has_token
    assert not Message(num_characters=3, token_ids=()).has_token

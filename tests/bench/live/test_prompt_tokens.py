"""Tokens for marks: equal beginnings stay equal, and nothing else is."""

from __future__ import annotations

import pytest

from fastgen_jax.bench.live.prompt_tokens import MadeUpTokens, output_marks
from fastgen_jax.errors import ConfigError


def test_equal_beginnings_stay_equal_and_nothing_else() -> None:
    tokens = MadeUpTokens(vocab_size=50_000)
    first, second = tokens.ids((-1,) * 20 + (5,) * 10), tokens.ids((-1,) * 20 + (6,) * 10)
    assert first[:20] == second[:20]
    assert sum(a == b for a, b in zip(first[20:], second[20:], strict=True)) == 0
    assert len(set(first)) > 25, "a mark gives another token at each place"


def test_other_salts_share_nothing() -> None:
    marks = (1,) * 200
    first = MadeUpTokens(vocab_size=50_000, salt=0).ids(marks)
    second = MadeUpTokens(vocab_size=50_000, salt=1).ids(marks)
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 3


def test_ids_are_those_of_the_vocabulary_without_the_special_ones() -> None:
    tokens = MadeUpTokens(vocab_size=40, num_special_ids=10).ids(tuple(range(2000)))
    assert set(tokens) == set(range(10, 40))
    with pytest.raises(ConfigError, match=r"^vocab_size=10: .*num_special_ids=10"):
        MadeUpTokens(vocab_size=10, num_special_ids=10)


def test_an_answers_own_tokens_come_back() -> None:
    tokens = MadeUpTokens(vocab_size=1000)
    assert tokens.ids(output_marks([0, 7, 999], 3, 5)) == (0, 7, 999)
    unknown = output_marks(None, 4, 5)
    assert len(tokens.ids(unknown)) == 4
    assert tokens.ids(unknown) != tokens.ids(output_marks(None, 4, 6))

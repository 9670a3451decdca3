"""A tokenizer that nobody needed isn't there; one that somebody needs is as the real one."""

from __future__ import annotations

import inspect

import pytest

from fastgen_jax.errors import ReplayError
from fastgen_jax.replaying.late_tokenizer import LateTokenizer
from fastgen_jax.testing import ByteTokenizer
from fastgen_jax.text import Tokenizer


def test_it_answers_as_the_one_that_was_given() -> None:
    given = ByteTokenizer()
    late = LateTokenizer(None, given)
    late.load(for_whom="request 3")
    assert isinstance(late, Tokenizer)
    assert late.encode("Hi", add_special_tokens=False) == [72, 105]
    assert late.decode([256, 72], skip_special_tokens=False) == "<bos>H"
    assert late.id_to_token(256) == "<bos>"
    names = [name for name in vars(Tokenizer) if not name.startswith("_")]
    plain = [name for name in names if not inspect.isroutine(vars(Tokenizer)[name])]
    assert len(plain) > 5
    for name in plain:
        assert getattr(late, name) == getattr(given, name), name


def test_without_a_model_the_error_says_what_to_give() -> None:
    with pytest.raises(ReplayError, match=r"request 3 has stop strings.*--model"):
        LateTokenizer(None, None).load(for_whom="request 3")


def test_one_that_was_not_loaded_is_not_used() -> None:
    with pytest.raises(AssertionError, match="need the tokenizer"):
        LateTokenizer(None, None).encode("Hi")

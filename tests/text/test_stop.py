"""Stop strings: where a text ends doesn't depend on how it was cut into pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.text.stop import StopChecker, StopResult

letters = st.text("ab", max_size=30)
stops = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)


def run(checker: StopChecker, deltas: list[str]) -> StopResult:
    results = [checker.append(delta) for delta in deltas] + [checker.finish()]
    return StopResult(text="".join(r.text for r in results), matched=results[-1].matched)


def expected(text: str, stop: list[str], include: bool) -> StopResult:
    """By definition: the first end of any stop string, then its earliest start."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            found = max(complete, key=len)
            shown = end if include else end - len(found)
            return StopResult(text=text[:shown], matched=found)
    return StopResult(text=text)


@given(text=letters, stop=stops, cuts=st.lists(st.integers(0, 30)), include=st.booleans())
def test_result_is_the_definition_for_any_cut(
    text: str, stop: list[str], cuts: list[int], include: bool
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    deltas = [text[a:b] for a, b in pairwise(edges)]
    assert run(StopChecker(tuple(stop), include), deltas) == expected(text, stop, include)


@given(text=letters, stop=stops)
def test_holds_back_just_the_longest_possible_prefix(text: str, stop: list[str]) -> None:
    checker = StopChecker(tuple(stop))
    result = checker.append(text)
    if result.matched is None:
        tails = [text[i:] for i in range(len(text))]
        held = max((len(t) for t in tails for s in stop if s.startswith(t) and s != t), default=0)
        assert result.text == text[: len(text) - held]
        assert checker.finish().text == text[len(text) - held :]


def test_no_stop_strings_release_everything_at_once() -> None:
    assert StopChecker(()).append("abc") == StopResult(text="abc")


def test_long_stop_string_does_not_delay_unrelated_text() -> None:
    assert StopChecker(("x" * 50,)).append("hello").text == "hello"


def test_included_stop_string_needs_no_holding_back() -> None:
    checker = StopChecker(("END",), include_stop_str=True)
    assert checker.append("aEN").text == "aEN"
    assert checker.append("Dzzz") == StopResult(text="D", matched="END")


def test_text_after_a_match_is_dropped() -> None:
    checker = StopChecker(("\n\n", "END"))
    assert checker.append("one\n") == StopResult(text="one")
    assert checker.append("\ntwo END") == StopResult(text="", matched="\n\n")
    assert checker.append("more") == StopResult(text="", matched="\n\n")
    assert checker.finish() == StopResult(text="", matched="\n\n")


def test_empty_stop_string_is_refused_by_position() -> None:
    with pytest.raises(InvalidRequestError, match=r"stop\[1\]"):
        StopChecker(("a", ""))

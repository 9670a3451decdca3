"""One request's text: stop strings, held-back characters, deltas."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fastgen_jax.completion import Completion, End
from fastgen_jax.request import FinishReason, Request, RequestState
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.testing import ByteTokenizer

EOS = 257
PROMPT = tuple(b"Hi")


class CountingTokenizer(ByteTokenizer):
    """Counts how often text is made."""

    num_decodes = 0

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text, counted."""
        self.num_decodes += 1
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens)


def completion_of(
    params: SamplingParams, tokenizer: ByteTokenizer | None = None, prompt: Sequence[int] = PROMPT
) -> Completion:
    request = Request(
        request_id="a",
        prompt_token_ids=tuple(prompt),
        params=params,
        max_output_tokens=params.max_tokens or 100,
    )
    return Completion(
        request,
        index=0,
        tokenizer=tokenizer or ByteTokenizer(),
        eos_token_ids=frozenset({EOS}),
    )


def end_request(completion: Completion, end: End) -> None:
    """What the scheduler does at an end."""
    request = completion.request
    request.state = RequestState.FINISHED
    request.finish_reason, request.stop_reason = end


def feed(completion: Completion, tokens: Sequence[int]) -> End | None:
    """Append tokens till one ends the request."""
    for token in tokens:
        completion.request.token_ids.append(token)
        end = completion.end_after(token)
        if end is not None:
            end_request(completion, end)
            return end
    return None


def test_stop_string_across_tokens_is_held_back_then_cut() -> None:
    completion = completion_of(SamplingParams(stop="END"))
    shown: list[str] = []
    for character in "go EN":
        assert feed(completion, character.encode()) is None
        shown.append(completion.text)
    assert shown == ["g", "go", "go ", "go ", "go "]
    assert feed(completion, b"D!") == End(FinishReason.STOP, "END")
    assert completion.text == "go "
    assert completion.request.output_token_ids == list(b"go END")


def test_a_false_start_of_a_stop_string_is_released() -> None:
    completion = completion_of(SamplingParams(stop="END"))
    feed(completion, b"ENx")
    assert completion.text == "ENx"


def test_held_back_text_comes_out_at_the_end() -> None:
    completion = completion_of(SamplingParams(stop="END", max_tokens=4))
    assert feed(completion, b"goEN") == End(FinishReason.LENGTH)
    assert completion.text == "goEN"


def test_held_back_text_comes_out_before_eos() -> None:
    completion = completion_of(SamplingParams(stop="END"))
    assert feed(completion, [*b"goEN", EOS]) == End(FinishReason.STOP)
    assert completion.text == "goEN"


def test_held_back_text_comes_out_on_abort() -> None:
    completion = completion_of(SamplingParams(stop="END"))
    feed(completion, b"goEN")
    end_request(completion, End(FinishReason.ABORT))
    assert completion.text == "goEN"


def test_multi_byte_stop_string() -> None:
    completion = completion_of(SamplingParams(stop="é→"))
    text = "caé→x"
    assert feed(completion, text.encode()) == End(FinishReason.STOP, "é→")
    assert completion.text == "ca"
    assert len(completion.request.output_token_ids) == len("caé→".encode())


def test_a_character_is_shown_when_it_is_complete() -> None:
    completion = completion_of(SamplingParams())
    shown: list[str] = []
    for byte in "a→".encode():
        feed(completion, [byte])
        shown.append(completion.text)
    assert shown == ["a", "a", "a", "a→"]


def test_an_incomplete_character_shows_at_the_end() -> None:
    completion = completion_of(SamplingParams(max_tokens=2, stop="zz"))
    feed(completion, "→".encode()[:2])
    assert completion.text == "\ufffd"


@pytest.mark.parametrize(
    ("min_tokens", "num_tokens", "text"),
    [
        (0, 2, ""),
        (1, 2, ""),
        (2, 2, ""),  # begins before the second token, but ends with it
        (3, 4, "ab"),
        (4, 4, "ab"),
        (5, None, "abab"),
    ],
)
def test_a_stop_string_counts_from_min_tokens_on(
    min_tokens: int, num_tokens: int | None, text: str
) -> None:
    params = SamplingParams(stop="ab", min_tokens=min_tokens, max_tokens=9)
    completion = completion_of(params)
    end = feed(completion, b"abab")
    assert end == (None if num_tokens is None else End(FinishReason.STOP, "ab"))
    assert completion.request.num_output_tokens == (num_tokens or 4)
    assert completion.text == text


def test_a_stop_string_passed_over_is_shown_whole() -> None:
    for include in (True, False):
        params = SamplingParams(
            stop="abc", min_tokens=5, max_tokens=9, include_stop_str_in_output=include
        )
        completion = completion_of(params)
        feed(completion, b"xabca")
        assert completion.text == ("xabca" if include else "xabc")
        feed(completion, b"bc")
        assert completion.text == ("xabcabc" if include else "xabc")


@given(
    text=st.text("ab→", max_size=12),
    stop=st.lists(st.text("ab→", min_size=1, max_size=3), max_size=2),
    min_tokens=st.integers(0, 8),
    include=st.booleans(),
    ends_with_eos=st.booleans(),
    looks=st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_deltas_join_to_the_text_however_often_somebody_looks(
    text: str,
    stop: list[str],
    min_tokens: int,
    include: bool,
    ends_with_eos: bool,
    looks: list[bool],
) -> None:
    params = SamplingParams(
        stop=stop or None,
        min_tokens=min_tokens,
        include_stop_str_in_output=include,
        max_tokens=40,
    )
    watched, unwatched = completion_of(params), completion_of(params)
    told, told_ids = "", ()
    tokens = [*text.encode(), *([EOS] if ends_with_eos else [])]
    for byte, looks_now in zip(tokens, looks, strict=False):
        ends = {feed(one, [byte]) for one in (watched, unwatched)}
        assert len(ends) == 1, "looking changed the end"
        if looks_now:
            delta = watched.take_delta()
            told, told_ids = told + delta.text, told_ids + delta.token_ids
        if ends != {None}:
            break
    for one in (watched, unwatched):
        if not one.request.is_finished:
            end_request(one, End(FinishReason.ABORT))
    delta = watched.take_delta()
    assert told + delta.text == watched.text == unwatched.text == unwatched.output().text
    assert told_ids + delta.token_ids == tuple(watched.request.output_token_ids)
    assert delta.finish_reason is watched.request.finish_reason
    assert watched.take_delta().text == ""
    if not isinstance(watched.request.stop_reason, str):
        assert watched.text == text


def test_eos_is_no_text_even_unskipped() -> None:
    params = SamplingParams(skip_special_tokens=False)
    completion = completion_of(params)
    assert feed(completion, [*b"ok", EOS]) == End(FinishReason.STOP)
    assert completion.text == "ok"


def test_eos_is_text_where_it_was_asked_for() -> None:
    params = SamplingParams(skip_special_tokens=False, include_stop_str_in_output=True)
    completion = completion_of(params)
    feed(completion, [*b"ok", EOS])
    assert completion.text == "ok<eos>"


def test_eos_in_the_middle_is_skipped_or_shown() -> None:
    for skip, text in ((True, "ok!"), (False, "ok<eos>!")):
        params = SamplingParams(ignore_eos=True, skip_special_tokens=skip)
        completion = completion_of(params)
        feed(completion, [*b"ok", EOS, *b"!"])
        assert completion.text == text


def test_text_is_made_when_somebody_looks() -> None:
    tokenizer = CountingTokenizer()
    completion = completion_of(SamplingParams(logprobs=1, max_tokens=5), tokenizer)
    feed(completion, b"abcde")
    assert tokenizer.num_decodes == 0
    assert completion.text == "abcde"
    assert tokenizer.num_decodes > 0


def test_final_text_is_made_once() -> None:
    tokenizer = CountingTokenizer()
    completion = completion_of(SamplingParams(max_tokens=5), tokenizer)
    feed(completion, b"abcde")
    text, count = completion.text, tokenizer.num_decodes
    assert completion.text is text
    assert tokenizer.num_decodes == count


def test_without_a_tokenizer_there_is_no_text() -> None:
    request = Request(
        request_id="a", prompt_token_ids=PROMPT, params=SamplingParams(), max_output_tokens=1
    )
    completion = Completion(request, index=0, tokenizer=None, eos_token_ids=frozenset())
    assert feed(completion, b"a") == End(FinishReason.LENGTH)
    assert completion.text == ""
    assert completion.output().text == ""


def test_a_stop_string_passed_over_stays_text_when_eos_follows() -> None:
    completion = completion_of(SamplingParams(stop="ab", min_tokens=3))
    assert feed(completion, [*b"ab", EOS]) == End(FinishReason.STOP)
    assert completion.text == "ab"

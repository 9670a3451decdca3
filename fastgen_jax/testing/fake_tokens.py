"""What the fake executor draws: pure functions of a request's tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

NextToken = Callable[[Sequence[int]], int]

_MODULUS = 2**61 - 1


class FakeLogprobs(NamedTuple):
    """Log-probabilities in the fake model's distribution: of a token, and of the k most likely."""

    logprob: float
    rank: int
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


def history_hash(token_ids: Sequence[int], start: int = 0) -> int:
    """A number in [0, 2**61 - 1) that depends on every token and on their order.

    ``start`` is the hash of the tokens before, so that a growing history hashes piece by piece.
    """
    state = start
    for token_id in token_ids:
        state = (state * 1_000_003 + token_id + 11) % _MODULUS
    return state


def hashed_tokens(token_ids: Sequence[int]) -> NextToken:
    """A model that draws one of ``token_ids``, picked by the hash of the whole history."""
    choices = tuple(token_ids)
    return lambda history: choices[history_hash(history) % len(choices)]


def scripted_tokens(num_prompt_tokens: int, script: Sequence[int]) -> NextToken:
    """A model that continues prompts of one length with a script, and repeats its last token."""
    tokens = tuple(script)
    return lambda history: tokens[min(len(history) - num_prompt_tokens, len(tokens) - 1)]


def fake_logprobs(
    history: Sequence[int], token_id: int, *, vocab_size: int, k: int
) -> FakeLogprobs:
    """The log-probabilities the fake executor reports for ``token_id`` after ``history``.

    All are multiples of 1/1024, so they are exact in float32.
    """
    state = history_hash((*history, token_id))
    first = history_hash(history) % vocab_size
    return FakeLogprobs(
        logprob=-(1 + state % 4096) / 1024,
        rank=1 + state % vocab_size,
        top_ids=tuple((first + place) % vocab_size for place in range(k)),
        top_logprobs=tuple(-(1 + state % 64 + place) / 1024 for place in range(k)),
    )

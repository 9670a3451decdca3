"""Real tokens for the prompts of workloads, in which only lengths and shared beginnings matter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastgen_jax.errors import ConfigError

_OUTPUT = 1 << 40  # a mark from here on is a token of an answer; no workload counts so far
_UNKNOWN = -(1 << 40)  # below: of an answer whose tokens aren't known


class MadeUpTokens:
    """Turns a workload's marks into token ids, so that equal beginnings stay equal.

    The token depends on the mark, its position and the salt: the same mark at the same place is
    the same token, and all else is random. Runs with different salts share nothing, so that none
    finds the prompts of another in a prefix cache.
    """

    def __init__(self, *, vocab_size: int, num_special_ids: int = 100, salt: int = 0) -> None:
        """``num_special_ids``: ids from 0 on that no prompt holds; they may be control tokens."""
        if not 0 <= num_special_ids < vocab_size:
            raise ConfigError(
                f"leaves no token of num_special_ids={num_special_ids} on",
                field="vocab_size",
                value=vocab_size,
                remedy="give the model's number of tokens",
            )
        self._low = num_special_ids
        self._count = np.uint64(vocab_size - num_special_ids)
        self._salt = np.uint64(salt)

    def ids(self, marks: Sequence[int]) -> tuple[int, ...]:
        """Token ids for a prompt's marks."""
        signed = np.array(marks, np.int64)
        places = np.arange(len(signed), dtype=np.uint64)
        mixed = _mix(_mix(_mix(signed.view(np.uint64)) ^ places) ^ self._salt)
        made_up = (mixed % self._count).astype(np.int64) + self._low
        return tuple(np.where(signed >= _OUTPUT, signed - _OUTPUT, made_up).tolist())


def output_marks(token_ids: Sequence[int] | None, num_tokens: int, number: int) -> tuple[int, ...]:
    """An answer's marks, for a conversation's next turn.

    Its own tokens where they are known, else as many made-up ones, which no cache can know.
    """
    if token_ids is None:
        return (_UNKNOWN - number,) * num_tokens
    return tuple(_OUTPUT + token_id for token_id in token_ids)


def _mix(values: np.ndarray) -> np.ndarray:
    """Every bit of a 64-bit number spread over all; the finalizer of SplitMix64 (Steele 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

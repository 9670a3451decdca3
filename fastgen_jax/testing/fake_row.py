"""A device row of the fake executor: one request's tokens and how far they are computed."""

from __future__ import annotations

import numpy as np

from fastgen_jax.sampling.row_limits import RowLimits
from fastgen_jax.testing.fake_tokens import history_hash


class FakeRow:
    """What ``pack_row`` packed, and what steps added to it.

    Attributes:
        token_ids: the prompt and outputs; beyond them whatever the host packed there.
        digests: int64, the hash of all tokens up to and including each position.
        prompt_len: tokens of the prompt.
        seed: the request's random stream.
        num_logprobs: alternatives wanted per token; -1 when not even the drawn token's is.
        num_computed: tokens whose keys and values are in the cache; None before the first step.
        has_drawn: True once a token was drawn since the row was written.
    """

    def __init__(self, packed: np.ndarray, limits: RowLimits) -> None:
        expected = limits.neutral_row.shape
        if packed.shape != expected or packed.dtype != np.int32:
            raise AssertionError(f"a row of {packed.dtype} {packed.shape}, not int32 {expected}")
        place = limits.field_slices
        high, low = packed[place["seed"]].view(np.uint32).tolist()
        self.token_ids: list[int] = packed[place["token_ids"]].tolist()
        self.prompt_len = int(packed[place["prompt_len"]][0])
        self.seed = (high << 32) | low
        self.num_logprobs = int(packed[place["num_logprobs"]][0])
        self._min_position = int(packed[place["min_position"]][0])
        self._stop_ids = frozenset(packed[place["stop_ids"]].tolist())
        self._vocab_size = limits.vocab_size
        self.num_computed: int | None = None
        self.has_drawn = False
        self.digests = np.zeros(limits.max_model_len, np.int64)
        self._num_digests = 0

    def digests_to(self, end: int) -> np.ndarray:
        """The digests of positions [0, end)."""
        for position in range(self._num_digests, end):
            before = int(self.digests[position - 1]) if position else 0
            self.digests[position] = history_hash(self.token_ids[position : position + 1], before)
        self._num_digests = max(self._num_digests, end)
        return self.digests[:end]

    def allowed(self, position: int, token_id: int) -> int:
        """``token_id``, or the next one up that isn't held back below min_tokens."""
        while position < self._min_position and token_id in self._stop_ids:
            token_id = (token_id + 1) % self._vocab_size
        return token_id

    def append(self, position: int, token_id: int) -> None:
        """Store the token drawn for ``position``; a failed draw (-1) counts as token 0."""
        self._num_digests = min(self._num_digests, position)
        self.has_drawn = True
        if position < len(self.token_ids):
            self.token_ids[position] = max(token_id, 0)

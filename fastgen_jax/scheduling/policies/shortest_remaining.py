"""The request with the least left to compute goes first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastgen_jax.errors import ConfigError
from fastgen_jax.scheduling.views import RequestView


class ShortestRemaining:
    """By the tokens that are left, each later arrival counted as ``aging`` tokens more.

    What is left is the rest of the prompt and all output that was asked for (``max_tokens``); that
    a request may stop earlier isn't known. With aging, a request that has D tokens more to do than
    the shortest is passed by at most D / aging that came after it; at 0 it may starve.
    """

    def __init__(self, aging: float = 8.0) -> None:
        if not math.isfinite(aging) or aging < 0:
            raise ConfigError("must be a number from 0 on", field="aging", value=aging)
        self._aging = aging

    def rank(self, request: RequestView) -> float:
        """Tokens left when it is queued, aged."""
        return self._left(request)

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        """By tokens left, then by arrival."""
        return sorted(candidates, key=lambda request: (self._left(request), request.arrival_index))

    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        """The one with the most left."""
        return max(running, key=lambda request: (self._left(request), request.arrival_index))

    def _left(self, request: RequestView) -> float:
        total = request.num_prompt_tokens + request.max_output_tokens
        return total - request.num_computed_tokens + self._aging * request.arrival_index

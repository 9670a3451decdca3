"""When the tokens of a real run came, so that it can be judged like a simulated one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np

from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.request import FinishReason, Request


class TokenClock:
    """Looks at requests after each step of an engine, and notes the time of every new token.

    The clock must be the one that the requests' arrival times are of: the engine's, which is
    ``time.monotonic`` unless it was given another. Tokens of one launch share its time.

        clock = TokenClock()
        while engine.has_work:
            clock.look(completion.request for completion in engine.step())
        records = clock.records()
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: dict[Request, list[float]] = {}

    def look(self, requests: Iterable[Request]) -> None:
        """Note what came for these: all that the step may have changed, others do no harm."""
        now = self._clock()
        for request in requests:
            times = self._times.setdefault(request, [])
            times.extend([now] * (request.num_output_tokens - len(times)))

    def records(self) -> tuple[RequestRecord, ...]:
        """A record of every request that was looked at, in the order of the first looks."""
        return tuple(_record(request, times) for request, times in self._times.items())


def _record(request: Request, times: list[float]) -> RequestRecord:
    return RequestRecord(
        request_id=request.request_id,
        arrival_time=request.arrival_time,
        num_prompt_tokens=request.num_prompt_tokens,
        token_times=np.array(times, float),
        num_cached_tokens=request.num_cached_tokens,
        num_preemptions=request.num_preemptions,
        is_complete=request.finish_reason in (FinishReason.STOP, FinishReason.LENGTH),
        targets=request.targets,
    )

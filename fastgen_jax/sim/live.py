"""Requests on their way through a simulation."""

from __future__ import annotations

import numpy as np

from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.request import FinishReason, Request
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.sim.arrival import Arrival

_PARAMS = SamplingParams()


class LiveRequest:
    """A request, the arrival it came from, and when its tokens came."""

    __slots__ = (
        "arrival",
        "first_scheduled",
        "num_left",
        "request",
        "times",
        "token_id",
        "token_ids",
    )

    def __init__(self, arrival: Arrival, number: int) -> None:
        max_tokens = arrival.max_tokens or arrival.num_output_tokens
        self.arrival = arrival
        # Equal prompts get equal answers.
        self.token_id = arrival.prompt_token_ids[0] if arrival.prompt_token_ids else 0
        self.request = Request(
            request_id=str(number),
            prompt_token_ids=arrival.prompt_token_ids,
            params=_PARAMS,
            max_output_tokens=max_tokens,
            arrival_time=arrival.time,
            priority=arrival.priority,
            cache_salt=arrival.cache_salt,
            targets=arrival.targets,
        )
        self.token_ids = self.request.token_ids
        self.num_left = arrival.num_output_tokens
        self.times: list[float] = []
        self.first_scheduled: float | None = None

    def record(self) -> RequestRecord:
        """What is known of it, now that it has ended."""
        request = self.request
        return RequestRecord(
            request_id=request.request_id,
            arrival_time=request.arrival_time,
            num_prompt_tokens=request.num_prompt_tokens,
            token_times=np.array(self.times),
            first_scheduled_time=self.first_scheduled,
            num_cached_tokens=request.num_cached_tokens,
            num_preemptions=request.num_preemptions,
            is_complete=request.finish_reason is FinishReason.LENGTH,
            targets=request.targets,
            client=self.arrival.client,
        )

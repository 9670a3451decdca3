"""Requests to an engine in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any, cast

from fastgen_jax.async_llm import AsyncLLM
from fastgen_jax.bench.live.transport import Reply
from fastgen_jax.errors import FastGenError
from fastgen_jax.outputs import Delta
from fastgen_jax.request import FinishReason
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.sim.arrival import Arrival

_GOOD_ENDS = (FinishReason.LENGTH, FinishReason.STOP)


class InProcess:
    """Streams of an ``AsyncLLM``; token ids in and out, greedy, past every EOS.

    Times are taken in the event loop, so the way there from the engine's thread is in them.
    """

    def __init__(
        self,
        llm: AsyncLLM,
        *,
        description: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._llm = llm
        self._description = description
        self._clock = clock

    async def send(self, arrival: Arrival) -> Reply:
        """The stream's tokens; what the engine refuses, or ends with an error, has failed."""
        wanted = arrival.num_output_tokens
        params = SamplingParams(
            temperature=0.0, max_tokens=arrival.max_tokens or wanted, ignore_eos=True
        )
        reply = Reply(sent_time=self._clock(), token_ids=[])
        stream = self._llm.stream(
            arrival.prompt_token_ids,
            params,
            priority=arrival.priority,
            cache_salt=arrival.cache_salt,
            targets=arrival.targets,
        )
        deltas = cast("AsyncGenerator[Delta]", stream)  # so that leaving it aborts at once
        try:
            async with aclosing(deltas):
                async for delta in deltas:
                    token_ids = delta.token_ids[: wanted - len(reply.token_times)]
                    if token_ids:
                        reply.add(self._clock(), len(token_ids))
                        reply.token_ids = [*(reply.token_ids or ()), *token_ids]
                    if delta.finish_reason not in (None, *_GOOD_ENDS):
                        reply.error = f"ended with {delta.finish_reason}"
                    if len(reply.token_times) == wanted:
                        break
        except FastGenError as error:
            reply.error = str(error)
        return reply

    async def counters(self) -> Mapping[str, Any] | None:
        """The engine's own counts."""
        found = await self._llm.metrics()
        scheduler = found.scheduler
        return {
            "num_steps": found.num_steps,
            "num_step_tokens": found.num_step_tokens,
            "num_padding_tokens": found.num_padding_tokens,
            "num_decode_tokens": found.num_decode_tokens,
            "num_preemptions": scheduler.num_preemptions,
            "num_queried_tokens": scheduler.num_queried_tokens,
            "num_hit_tokens": scheduler.num_hit_tokens,
            "steps_by_shape": {
                f"{shape.num_tokens}x{shape.num_rows}": count
                for shape, count in found.steps_by_shape.items()
            },
        }

    def describe(self) -> dict[str, Any]:
        """The model and its settings."""
        return dict(self._description)

    async def close(self) -> None:
        """Close the engine and free its memory."""
        await asyncio.to_thread(self._llm.close)

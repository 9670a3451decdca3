"""Requests to an engine in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from fastgen_jax import AsyncLLM
from fastgen_jax.bench.live.in_process import InProcess
from fastgen_jax.sim.arrival import Arrival
from tests.e2e.conftest import TINY_MODEL

Test = Callable[[InProcess], Coroutine[Any, Any, None]]


@pytest.fixture
def with_transport(compilation_cache: Path) -> Callable[[Test], None]:
    """Runs a coroutine function with an engine of its own."""

    async def main(test: Test) -> None:
        llm = await asyncio.to_thread(
            lambda: AsyncLLM(
                TINY_MODEL,
                dtype="float32",
                step_shapes=((4, 4), (16, 4)),
                block_size=8,
                num_kv_blocks=64,
                max_model_len=256,
                compilation_cache_dir=str(compilation_cache),
                show_progress=False,
            )
        )
        transport = InProcess(llm, description={"model": "tiny"})
        try:
            async with asyncio.timeout(60):
                await test(transport)
        finally:
            await transport.close()

    return lambda test: asyncio.run(main(test))


def test_every_token_has_a_time_and_an_end_may_be_a_surprise(
    with_transport: Callable[[Test], None],
) -> None:
    async def test(transport: InProcess) -> None:
        exact = Arrival(time=0.0, prompt_token_ids=(1, 2, 3), num_output_tokens=9)
        reply = await transport.send(exact)
        assert reply.error is None
        assert reply.sent_time <= reply.token_times[0]
        assert reply.token_times == sorted(reply.token_times)
        assert len(reply.token_times) == len(reply.token_ids or ()) == 9
        surprising = Arrival(
            time=0.0, prompt_token_ids=(1, 2, 3), num_output_tokens=5, max_tokens=200
        )
        cut = await transport.send(surprising)
        assert cut.token_ids == (reply.token_ids or [])[:5]
        assert (sum(cut.message_sizes), cut.error) == (5, None)

    with_transport(test)


def test_a_request_that_cannot_be_served_has_failed_alone(
    with_transport: Callable[[Test], None],
) -> None:
    async def test(transport: InProcess) -> None:
        too_long = Arrival(time=0.0, prompt_token_ids=(1,) * 300, num_output_tokens=4)
        reply = await transport.send(too_long)
        assert reply.error is not None
        assert "max_model_len" in reply.error
        fine = await transport.send(Arrival(time=0, prompt_token_ids=(1,), num_output_tokens=2))
        assert fine.error is None
        counters = await transport.counters()
        assert counters is not None
        assert (
            counters["num_step_tokens"]
            == sum(
                int(shape.split("x")[0]) * count
                for shape, count in counters["steps_by_shape"].items()
            )
            - counters["num_padding_tokens"]
        )

    with_transport(test)

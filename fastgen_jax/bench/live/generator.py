"""The load generator: a workload's requests, sent in real time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fastgen_jax.bench.exchange import Exchange
from fastgen_jax.bench.live.prompt_tokens import MadeUpTokens, output_marks
from fastgen_jax.bench.live.transport import Reply, Transport
from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.inbox import Inbox
from fastgen_jax.sim.workloads.workload import Workload

OnEnd = Callable[[Exchange], None]


class LoadGenerator:
    """Sends what a workload wants when it wants it; the workloads are those of the simulator.

    Open loops are sent on time however many are under way. A client of a closed loop whose request
    failed goes on with its next. ``clock`` must be the transport's.
    """

    def __init__(
        self,
        workload: Workload,
        transport: Transport,
        tokens: MadeUpTokens,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_end: OnEnd | None = None,
    ) -> None:
        self._inbox = Inbox(workload)
        self._transport = transport
        self._tokens = tokens
        self._clock = clock
        self._on_end = on_end
        self._start = 0.0
        self._exchanges: list[Exchange | None] = []
        self._num_open = 0
        self._news = asyncio.Event()

    async def run(self) -> tuple[Exchange, ...]:
        """Every request that was sent, in that order, when all have ended."""
        self._start = self._clock()
        async with asyncio.TaskGroup() as group:
            while self._num_open or self._inbox.next_time is not None:
                for arrival in self._inbox.take(self._now()):
                    number = len(self._exchanges)
                    self._exchanges.append(None)
                    self._num_open += 1
                    group.create_task(self._send(number, arrival))
                await self._wait()
        return tuple(exchange for exchange in self._exchanges if exchange is not None)

    def _now(self) -> float:
        return self._clock() - self._start

    async def _wait(self) -> None:
        """Until the next arrival is due, or a request has ended."""
        due = self._inbox.next_time
        timeout = None if due is None else max(due - self._now(), 0.0)
        if timeout is None and not self._num_open:
            return
        try:
            await asyncio.wait_for(self._news.wait(), timeout)
        except TimeoutError:
            return
        self._news.clear()

    async def _send(self, number: int, arrival: Arrival) -> None:
        prompt = self._tokens.ids(arrival.prompt_token_ids)
        reply = await self._transport.send(replace(arrival, prompt_token_ids=prompt))
        exchange = _exchange(number, arrival, reply, self._start)
        self._exchanges[number] = exchange
        said = output_marks(reply.token_ids, len(reply.token_times), number)
        self._num_open -= 1
        self._inbox.ended(arrival, (*arrival.prompt_token_ids, *said), self._now())
        self._news.set()
        if self._on_end is not None:
            self._on_end(exchange)


def _exchange(number: int, arrival: Arrival, reply: Reply, start: float) -> Exchange:
    record = RequestRecord(
        request_id=str(number),
        arrival_time=reply.sent_time - start,
        num_prompt_tokens=len(arrival.prompt_token_ids),
        token_times=np.array(reply.token_times, float) - start,
        is_complete=reply.error is None,
        targets=arrival.targets,
        client=arrival.client,
    )
    return Exchange(
        record=record,
        scheduled_time=arrival.time,
        num_asked_tokens=arrival.num_output_tokens,
        message_sizes=tuple(reply.message_sizes),
        counting=reply.counting,
        error=reply.error,
        num_server_prompt_tokens=reply.num_server_prompt_tokens,
        num_server_output_tokens=reply.num_server_output_tokens,
    )

"""Workloads sent in real time, to a transport that only waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fastgen_jax.bench.exchange import Exchange
from fastgen_jax.bench.live.generator import LoadGenerator
from fastgen_jax.bench.live.prompt_tokens import MadeUpTokens
from fastgen_jax.bench.live.transport import Reply
from fastgen_jax.bench.live.workload_spec import WorkloadSpec
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.workloads.workload import Replay

SPEC = WorkloadSpec(requests=20, prompt_tokens=12, output_tokens=3, deviation=0.3)


class Waiting:
    """Answers after a while; knows what was under way at once."""

    def __init__(self, seconds: Callable[[Arrival], float] = lambda _: 0.01) -> None:
        self.sent: list[Arrival] = []
        self.most_open = 0
        self.error: str | None = None
        self._seconds = seconds
        self._open = 0

    async def send(self, arrival: Arrival) -> Reply:
        reply = Reply(sent_time=time.monotonic(), token_ids=[])
        self.sent.append(arrival)
        self._open += 1
        self.most_open = max(self.most_open, self._open)
        await asyncio.sleep(self._seconds(arrival))
        self._open -= 1
        if self.error is not None:
            reply.error = self.error
            return reply
        reply.add(time.monotonic(), arrival.num_output_tokens)
        reply.token_ids = [3] * arrival.num_output_tokens
        return reply

    async def counters(self) -> Mapping[str, Any] | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None:
        pass


def drive(workload: Any, transport: Waiting) -> tuple[Exchange, ...]:
    async def run() -> tuple[Exchange, ...]:
        tokens = MadeUpTokens(vocab_size=1000)
        async with asyncio.timeout(30):
            return await LoadGenerator(workload, transport, tokens).run()

    return asyncio.run(run())


@pytest.mark.parametrize("clients", [1, 3, 50])
def test_a_closed_loop_has_never_more_under_way_than_clients(clients: int) -> None:
    transport = Waiting()
    spec = WorkloadSpec(requests=20, clients=clients, prompt_tokens=5, output_tokens=2)
    exchanges = drive(spec.build(), transport)
    assert len(exchanges) == 20
    assert transport.most_open == min(clients, 20)
    assert {exchange.record.client for exchange in exchanges} == set(range(min(clients, 20)))


def test_an_open_loop_waits_for_nobody_and_keeps_its_times() -> None:
    transport = Waiting(lambda _: 0.4)
    spec = WorkloadSpec(kind="open_loop", requests=40, rate=200.0)
    wanted = [arrival.time for arrival in spec.build().start()]
    exchanges = drive(spec.build(), transport)
    assert transport.most_open > 20
    assert [exchange.scheduled_time for exchange in exchanges] == wanted
    late = np.array([exchange.lateness for exchange in exchanges])
    assert late.min() > -0.01
    assert np.median(late) < 0.05


def test_lateness_is_measured_when_the_event_loop_is_held_up() -> None:
    class Blocking(Waiting):
        async def send(self, arrival: Arrival) -> Reply:
            if not self.sent:
                time.sleep(0.3)
            return await super().send(arrival)

    arrivals = [
        Arrival(time=0.05 * number, prompt_token_ids=(1,), num_output_tokens=1)
        for number in range(3)
    ]
    exchanges = drive(Replay(arrivals), Blocking())
    assert [exchange.lateness > 0.15 for exchange in exchanges] == [True, True, True]
    # Waiting for the loop is no latency of what is measured.
    assert max(exchange.record.ttft for exchange in exchanges[1:]) < 0.15


def test_everything_at_once_is_sent_at_once() -> None:
    transport = Waiting(lambda _: 0.1)
    exchanges = drive(WorkloadSpec(kind="at_once", requests=30).build(), transport)
    assert transport.most_open == len(exchanges) == 30


def test_failed_requests_are_kept_and_clients_go_on() -> None:
    transport = Waiting()
    transport.error = "broken"
    exchanges = drive(SPEC.build(), transport)
    assert len(exchanges) == 20
    assert {exchange.error for exchange in exchanges} == {"broken"}
    assert not any(exchange.record.is_complete for exchange in exchanges)


def test_records_are_in_the_order_of_sending() -> None:
    transport = Waiting(lambda arrival: 0.05 if arrival.client == 0 else 0.005)
    exchanges = drive(SPEC.build(), transport)
    assert [exchange.record.request_id for exchange in exchanges] == [str(n) for n in range(20)]
    sent = [exchange.record.arrival_time for exchange in exchanges]
    assert sent == sorted(sent)
    lengths = [len(arrival.prompt_token_ids) for arrival in transport.sent]
    assert [exchange.record.num_prompt_tokens for exchange in exchanges] == lengths


def test_a_conversations_next_turn_begins_with_the_tokens_of_the_last() -> None:
    transport = Waiting(lambda _: 0.001)
    spec = WorkloadSpec(
        kind="conversations", requests=2, rate=1000.0, least_turns=3, most_turns=3,
        think_seconds=0.001, prompt_tokens=10, output_tokens=4, turn_tokens=5,
    )  # fmt: skip
    drive(spec.build(), transport)
    assert len(transport.sent) == 6
    for client in (0, 1):
        turns = [arrival for arrival in transport.sent if arrival.client == client]
        for before, after in pairwise(turns):
            said = (*before.prompt_token_ids, *[3] * before.num_output_tokens)
            assert after.prompt_token_ids[: len(said)] == said
            assert len(after.prompt_token_ids) > len(said)


def test_an_error_in_the_transport_itself_ends_the_run() -> None:
    class Broken(Waiting):
        async def send(self, arrival: Arrival) -> Reply:
            raise RuntimeError("a bug")

    with pytest.raises(ExceptionGroup) as caught:
        drive(SPEC.build(), Broken())
    assert caught.group_contains(RuntimeError, match="a bug")

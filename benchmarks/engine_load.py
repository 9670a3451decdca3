"""An engine under a workload in real time, without an event loop: its client is the same thread."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.bench.token_clock import TokenClock
from fastgen_jax.completion import Completion
from fastgen_jax.engine import Engine
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.inbox import Inbox
from fastgen_jax.sim.workloads.workload import Workload


def serve(
    engine: Engine, workload: Workload, *, on_end: Callable[[], None] | None = None
) -> tuple[RequestRecord, ...]:
    """A record of every request, greedy and past any end of text; times on the engine's clock.

    Requests join between steps, as they do in ``AsyncLLM``, and a client hears of its tokens when
    the step that brought them has been read.
    """
    clock = TokenClock()
    inbox = Inbox(workload)
    arrivals: dict[Completion, Arrival] = {}
    begin = time.monotonic()
    while True:
        for arrival in inbox.take(time.monotonic() - begin):
            (completion,) = _submit(engine, arrival)
            arrivals[completion] = arrival
        if not engine.has_work:
            coming = inbox.next_time
            if coming is None:
                return clock.records()
            time.sleep(max(0.0, begin + coming - time.monotonic()))
            continue
        touched = engine.step()
        clock.look(completion.request for completion in touched)
        now = time.monotonic() - begin
        for completion in touched:
            if completion.request.is_finished:
                inbox.ended(arrivals.pop(completion), completion.request.token_ids, now)
                if on_end is not None:
                    on_end()


def _submit(engine: Engine, arrival: Arrival) -> list[Completion]:
    params = SamplingParams(temperature=0.0, max_tokens=arrival.num_output_tokens, ignore_eos=True)
    return engine.submit(
        arrival.prompt_token_ids,
        params,
        priority=arrival.priority,
        cache_salt=arrival.cache_salt,
        targets=arrival.targets,
    )

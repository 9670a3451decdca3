"""What a StepHistory costs: time per step, and bytes when it is full.

    python -m benchmarks.history_cost

On plans of a simulated engine, with prompts of 1 to 400 tokens and outputs of 1 to 100. Time: the
calls that an engine makes for each step, the fastest of some turns. Bytes: what is free when a full
history is, requests that have ended included.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable

from fastgen_jax.batching import StepShape
from fastgen_jax.metrics import StepCounters
from fastgen_jax.observe.observer import Observer, PlanWatcher
from fastgen_jax.observe.step_history import StepHistory
from fastgen_jax.scheduling.plan import StepPlan
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.sim.costs.model import ConstantCost
from fastgen_jax.sim.simulator import Simulator
from fastgen_jax.sim.workloads.closed_loop import ClosedLoop
from fastgen_jax.sim.workloads.lengths import UniformLengths
from fastgen_jax.sim.workloads.mix import RequestMix
from fastgen_jax.sim.workloads.prompts import UniquePrompts


def main() -> None:
    """Print both for 32 and for 256 rows."""
    for rows in (32, 256):
        plans = recorded_plans(rows)
        told, counted = seconds_of_history(plans), seconds_of_reasons(plans)
        print(
            f"{rows} rows: history {1e6 * told:.2f} us a step, reasons {1e6 * counted:.2f} us a "
            f"step, {bytes_of_history(rows) / 2**20:.1f} MiB when full of 1000 steps"
        )


def simulate(rows: int, *observers: Observer) -> None:
    """Serve twice as many clients as there are rows for about 1,500 steps."""
    config = SchedulerConfig(
        token_budget=512,
        max_num_seqs=rows,
        max_step_rows=rows,
        max_model_len=512,
        block_size=32,
        num_blocks=rows * 12,
        enable_prefix_caching=False,
    )
    mix = RequestMix(prompts=UniquePrompts(UniformLengths(1, 400)), outputs=UniformLengths(1, 100))
    clients = ClosedLoop(num_clients=2 * rows, num_requests=26 * rows + 500, mix=mix)
    Simulator(config, ConstantCost(), observers=observers).run(clients)


def recorded_plans(rows: int) -> list[StepPlan]:
    """Plans that ran."""
    plans: list[StepPlan] = []
    simulate(rows, PlanWatcher(plans.append))
    return [plan for plan in plans if not plan.is_empty]


def seconds_of_history(plans: list[StepPlan]) -> float:
    """Seconds a step of planned, launched and read."""
    shape = StepShape(512, 256)

    def tell_all() -> None:
        history = StepHistory(1000)
        for plan in plans:
            history.planned(plan)
            history.launched(plan, shape)
            for step in range(plan.chain_length):
                history.read(plan, step, (), 0.0)

    return fastest(tell_all) / len(plans)


def seconds_of_reasons(plans: list[StepPlan]) -> float:
    """Seconds a step of counting reasons."""

    def count_all() -> None:
        counters = StepCounters()
        for plan in plans:
            counters.count_plan(plan)

    return fastest(count_all) / len(plans)


def fastest(work: Callable[[], None], turns: int = 15) -> float:
    """Seconds of the fastest turn."""
    taken: list[float] = []
    for _ in range(turns):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def bytes_of_history(rows: int) -> int:
    """Bytes that go with a full history whose engine has nothing else left of the time."""
    tracemalloc.start()
    history = StepHistory(1000)
    simulate(rows, history)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    assert len(history) == history.max_steps, "the simulation is too short to fill it"
    del history
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return before - after


if __name__ == "__main__":
    main()

"""How long a simulation of 100,000 requests takes.

Poisson arrivals, prompts of 1200 tokens and outputs of 128, at three rates: light load makes many
small steps, heavy load fewer and larger ones. The costs are the scaled ones of
``paper_simulation``. Collections of garbage are left on, as in anybody's run.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.measurement import write_measurement
from benchmarks.paper_engines import COLLECTIVE_PER_TOKEN, FLOPS_RATIO, PER_KEY
from fastgen_jax.bench.machine import load_average
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.sim.costs.table import LLAMA_2_13B_A100_MS, TableCost
from fastgen_jax.sim.simulator import Simulator
from fastgen_jax.sim.workloads.mix import RequestMix
from fastgen_jax.sim.workloads.open_loop import OpenLoop

RATES = (1.0, 3.0, 3.8)
RESULT = Path(__file__).parent / "results" / "simulation_speed.json"


def measure(
    rate: float, num_requests: int, *, enable_prefix_caching: bool, merge_decodes: bool = True
) -> dict[str, float]:
    """One simulation: its own time, and what it simulated."""
    config = SchedulerConfig(
        token_budget=768,
        max_num_seqs=256,
        max_step_rows=256,
        max_model_len=8192,
        block_size=64,
        num_blocks=7500,
        enable_prefix_caching=enable_prefix_caching,
    )
    cost = TableCost.scaled(
        LLAMA_2_13B_A100_MS, FLOPS_RATIO, per_token=COLLECTIVE_PER_TOKEN, per_key=PER_KEY
    )
    workload = OpenLoop(rate=rate, num_requests=num_requests, mix=RequestMix.paper(1200, 128))
    wall, cpu = time.perf_counter(), time.process_time()
    result = Simulator(config, cost, merge_decodes=merge_decodes).run(workload)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert len(result.records) == num_requests
    return {
        "rate": rate,
        "enable_prefix_caching": enable_prefix_caching,
        "merge_decodes": merge_decodes,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "num_steps": sum(step.chain_length for step in result.steps),
        "num_plans": len(result.steps),
        "num_output_tokens": sum(record.num_output_tokens for record in result.records),
        "mean_rows": sum(record.num_output_tokens for record in result.records)
        / sum(step.chain_length for step in result.steps),
        "simulated_seconds": result.seconds,
    }


def main() -> None:
    """Simulate, print a line each, write the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--prefix-caching", action="store_true")
    parser.add_argument(
        "--compare", type=int, default=0, help="so many turns with and without merged decodes"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    load = load_average()
    print("  rate   wall s    CPU s    steps   mean rows", flush=True)
    runs: list[dict[str, float]] = []
    turns = [(rate, True) for rate in arguments.rates]
    if arguments.compare:
        turns = [(rate, merges) for rate in arguments.rates for merges in (True, False)]
    for rate, merges in turns * max(1, arguments.compare):
        found = measure(
            rate,
            arguments.requests,
            enable_prefix_caching=arguments.prefix_caching,
            merge_decodes=merges,
        )
        runs.append(found)
        print(
            f"{rate:6.1f} {found['wall_seconds']:8.1f} {found['cpu_seconds']:8.1f} "
            f"{found['num_steps']:8d} {found['mean_rows']:11.1f}",
            flush=True,
        )
    write_measurement(
        arguments.out,
        settings={"num_requests": arguments.requests},
        load_at_start=load,
        numbers={"runs": runs},
    )


if __name__ == "__main__":
    main()

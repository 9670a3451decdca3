"""What the policies are for shows on traffic."""

from __future__ import annotations

from fastgen_jax.bench.summary import RunSummary, summarize
from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.sim.costs.table import LLAMA_2_13B_A100_MS, TableCost
from fastgen_jax.sim.simulator import Simulator
from fastgen_jax.sim.workloads.lengths import NormalLengths
from fastgen_jax.sim.workloads.mix import RequestMix
from fastgen_jax.sim.workloads.open_loop import OpenLoop
from fastgen_jax.sim.workloads.prompts import UniquePrompts

PACE = 0.07


def serve(policy: str, *, token_budget: int = 768) -> RunSummary:
    """Requests that want a token every 70 ms; a full step of 768 takes 93 ms."""
    config = SchedulerConfig(
        token_budget=token_budget,
        max_num_seqs=64,
        max_step_rows=64,
        max_model_len=8192,
        block_size=64,
        num_blocks=4000,
        enable_prefix_caching=False,
    )
    mix = RequestMix(
        prompts=UniquePrompts(NormalLengths(mean=1200, most=4000)),
        outputs=NormalLengths(mean=128),
        targets=LatencyTargets(ttft=3.0, tpot=PACE),
    )
    simulator = Simulator(config, TableCost.scaled(LLAMA_2_13B_A100_MS), policy=policy)
    return summarize(simulator.run(OpenLoop(rate=4.0, num_requests=250, mix=mix)).records)


def test_deadlines_keep_the_pace_that_is_asked_for() -> None:
    """The policy was told nothing of what steps cost: it learned it."""
    plain, aimed = serve("fcfs"), serve("deadlines")
    assert plain.gaps is not None
    assert aimed.gaps is not None
    assert plain.gaps.p95 > 1.25 * PACE
    assert aimed.gaps.p95 < 1.1 * PACE
    assert aimed.goodput >= plain.goodput


def test_prompts_first_make_decodes_wait() -> None:
    plain, stalling = serve("fcfs"), serve("prefill_first", token_budget=4096)
    assert plain.gaps is not None
    assert stalling.gaps is not None
    assert stalling.gaps.p95 > 1.3 * plain.gaps.p95
    assert stalling.gaps.p99 > 2 * plain.gaps.p99


def test_static_batches_make_newcomers_wait() -> None:
    plain, static = serve("fcfs"), serve("static_batching")
    assert plain.ttft is not None
    assert static.ttft is not None
    assert static.ttft.p50 > 3 * plain.ttft.p50

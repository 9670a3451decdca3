"""The two engines of the FastGen paper's comparison, as the simulator runs them.

Llama-2-70B over four A100, from the curve of a 13B model on one of them: each GPU has 1.32 times
the 13B's FLOPs per token, and pays for the all-reduces and for the keys that its share of the heads
reads. Both engines plan a step only when the one before has ended, as theirs did.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.sim.costs.table import LLAMA_2_13B_A100_MS, TableCost
from fastgen_jax.sim.simulator import Simulator

PARAMETERS_70B, PARAMETERS_13B = 68.98e9, 13.02e9  # outside the embedding
NUM_GPUS = 4
FLOPS_RATIO = PARAMETERS_70B / NUM_GPUS / PARAMETERS_13B
# 160 all-reduces of 8192 half-precision numbers, each byte sent 2 * 3/4 times, at 75 % of NVLink 3.
COLLECTIVE_PER_TOKEN = 160 * 8192 * 2 * 1.5 / (0.75 * 300e9)
COLLECTIVE_PER_STEP = 160 * 10e-6
# 80 layers, keys and values, 2 heads of 128 half-precision numbers, at 85 % of 2039 GB/s.
PER_KEY = 80 * 2 * 2 * 128 * 2 / (0.85 * 2039e9)
BLOCK_SIZE = 64
NUM_BLOCKS = 7500  # 80 GB a GPU, less 34.5 GB of weights and a reserve, at 80 KiB a token


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCosts:
    """What an engine's steps cost beyond the scaled curve.

    Attributes:
        factor: of the curve.
        per_step: seconds of host work in each step.
        per_row: seconds of host work for each request in a step.
    """

    factor: float
    per_step: float
    per_row: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperEngine:
    """One engine: how it schedules, and what its steps cost.

    Attributes:
        policy: how steps are filled.
        token_budget: 768 is FastGen's default; 4096 vLLM's, the model's length.
        own: fitted to four of the paper's points: 1 and 32 clients, 60 and 128 output tokens.
    """

    policy: str
    token_budget: int
    own: OwnCosts


SCALED = OwnCosts(factor=FLOPS_RATIO, per_step=COLLECTIVE_PER_STEP, per_row=0.0)
ENGINES: dict[str, PaperEngine] = {
    "fastgen": PaperEngine(
        policy="fcfs",
        token_budget=768,
        own=OwnCosts(factor=1.455, per_step=0.0203, per_row=0.00119),
    ),
    "vllm": PaperEngine(
        policy="prefill_first",
        token_budget=4096,
        own=OwnCosts(factor=1.596, per_step=0.0283, per_row=0.00104),
    ),
}


def simulator(engine: PaperEngine, costs: OwnCosts) -> Simulator:
    """The engine with these costs."""
    config = SchedulerConfig(
        token_budget=engine.token_budget,
        max_num_seqs=256,
        max_step_rows=256,
        max_model_len=8192,
        block_size=BLOCK_SIZE,
        num_blocks=NUM_BLOCKS,
        enable_prefix_caching=False,
    )
    cost = TableCost.scaled(
        LLAMA_2_13B_A100_MS,
        costs.factor,
        per_step=costs.per_step,
        per_row=costs.per_row,
        per_token=COLLECTIVE_PER_TOKEN,
        per_key=PER_KEY,
    )
    return Simulator(config, cost, policy=engine.policy, launches_in_flight=1)

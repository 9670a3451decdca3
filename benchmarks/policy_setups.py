"""What the measured comparison of policies serves, and how each policy is set up for it.

The paper's setup is scaled by what stays the same when a machine is slower. With its own costs its
vLLM takes 9.5 decode steps of six rows for a prompt of 2600, SplitFuse's budget of 768 makes a step
3 of them long, the limit between tokens is 4.1 of them, and that to a first token 83. Two cores of
a CPU take 9 ms for a step and 1.9 ms for each token in it, so 20 ms for a decode step of six rows:
that makes a prompt of 96 tokens, a budget of 28, 12 tokens per second, and 60 prompt tokens per
second. The second setup has longer prompts under the same limits, as a CPU's users see more often.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastgen_jax.bench.sla import ServiceLevel
from fastgen_jax.sim.workloads.closed_loop import ClosedLoop
from fastgen_jax.sim.workloads.lengths import NormalLengths
from fastgen_jax.sim.workloads.mix import RequestMix
from fastgen_jax.sim.workloads.prompts import UniquePrompts

LONGEST_OF_MEAN = 4000 / 2600  # the paper's scripts cut prompts there
SPLITFUSE = "fcfs"
BASELINE = "prefill_first"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A workload, its service level, and the budget that suits the machine.

    Attributes:
        prompt_tokens, output_tokens: means; lengths are normal with deviations of 30 %.
        token_budget: of the policies that cut prompts.
        level: what a request must get to count.
        clients: the points of the curve.
    """

    prompt_tokens: int
    output_tokens: int
    token_budget: int
    level: ServiceLevel
    clients: tuple[int, ...]

    @property
    def name(self) -> str:
        """As the paper writes it."""
        return f"{self.prompt_tokens}/{self.output_tokens}"

    @property
    def longest_prompt(self) -> int:
        """Tokens, none longer."""
        return int(self.prompt_tokens * LONGEST_OF_MEAN)

    def budget_of(self, policy: str) -> int:
        """Tokens of a step; a policy of whole prompts gets room for the longest beside decodes."""
        if policy == SPLITFUSE:
            return self.token_budget
        return self.longest_prompt + max(self.clients)

    def workload(self, num_clients: int, num_requests: int, seed: int) -> ClosedLoop:
        """Clients that each send their next request when the last has ended."""
        return ClosedLoop(
            num_clients=num_clients,
            num_requests=num_requests,
            mix=RequestMix(
                prompts=UniquePrompts(
                    NormalLengths(mean=self.prompt_tokens, most=self.longest_prompt)
                ),
                outputs=NormalLengths(mean=self.output_tokens),
            ),
            seed=seed,
            start_spread=0.01 * num_clients,
        )


POLICIES = {
    SPLITFUSE: "Dynamic SplitFuse",
    BASELINE: "prompts first (vLLM, 2023)",
    "iteration_level": "iteration level (Orca)",
    "static_batching": "static batching",
}
SETUPS = (
    Setup(
        prompt_tokens=96,
        output_tokens=60,
        token_budget=28,
        level=ServiceLevel(token_rate=12, prompt_rate=60),
        clients=(1, 2, 4, 8, 12, 16),
    ),
    Setup(
        prompt_tokens=256,
        output_tokens=64,
        token_budget=28,
        level=ServiceLevel(token_rate=12, prompt_rate=60),
        clients=(2, 4),
    ),
)

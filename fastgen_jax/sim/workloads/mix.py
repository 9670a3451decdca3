"""What kind of requests a workload sends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.workloads.lengths import Lengths, NormalLengths
from fastgen_jax.sim.workloads.prompts import Prompts, UniquePrompts

_NO_TARGETS = LatencyTargets()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMix:
    """Prompts, output lengths and targets of the requests.

    Attributes:
        prompts: what they begin with.
        outputs: after how many tokens they end.
        max_tokens: what the scheduler is told of that; None: the exact number.
        targets: of every request.
    """

    prompts: Prompts
    outputs: Lengths
    max_tokens: int | None = None
    targets: LatencyTargets = _NO_TARGETS

    @classmethod
    def paper(cls, prompt_tokens: int, output_tokens: int) -> RequestMix:
        """The FastGen paper's: both normal, with deviations of 30 % of the mean."""
        return cls(
            prompts=UniquePrompts(NormalLengths(mean=prompt_tokens)),
            outputs=NormalLengths(mean=output_tokens),
        )

    def draw(
        self, number: int, rng: np.random.Generator, *, time: float, client: int | None = None
    ) -> Arrival:
        """The workload's request of this number."""
        prompt = self.prompts.draw(number, rng)
        num_output_tokens = self.outputs.draw(rng)
        max_tokens = self.max_tokens
        return Arrival(
            time=time,
            prompt_token_ids=prompt,
            num_output_tokens=num_output_tokens,
            max_tokens=None if max_tokens is None else max(max_tokens, num_output_tokens),
            targets=self.targets,
            client=client,
        )

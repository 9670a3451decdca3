"""Counts of what an engine has done, cheap enough to keep always."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fastgen_jax.batching import StepShape
from fastgen_jax.completion import Completion
from fastgen_jax.scheduling.metrics import SchedulerMetrics
from fastgen_jax.scheduling.plan import StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMetrics:
    """A snapshot; counters start with the engine.

    Attributes:
        scheduler: queue lengths, blocks, prefix hit rate, preemptions.
        num_steps: steps launched; those of a chain count each.
        num_step_tokens: tokens computed, those recomputed or dropped included.
        num_padding_tokens: places of the compiled shapes that held no token.
        num_decode_tokens: of num_step_tokens, decodes.
        steps_by_shape: steps launched per compiled shape.
        num_finished: ended requests by finish reason.
        num_prompt_tokens: prompt tokens of ended requests.
        num_output_tokens: output tokens of ended requests.
    """

    scheduler: SchedulerMetrics
    num_steps: int
    num_step_tokens: int
    num_padding_tokens: int
    num_decode_tokens: int
    steps_by_shape: dict[StepShape, int]
    num_finished: dict[str, int]
    num_prompt_tokens: int
    num_output_tokens: int

    @property
    def padding_fraction(self) -> float:
        """Share of the launched places that held no token."""
        places = self.num_step_tokens + self.num_padding_tokens
        return self.num_padding_tokens / places if places else 0.0


@dataclass(slots=True)
class StepCounters:
    """The running counts behind EngineMetrics."""

    num_step_tokens: int = 0
    num_padding_tokens: int = 0
    num_decode_tokens: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    steps_by_shape: Counter[StepShape] = field(default_factory=Counter)
    num_finished: Counter[str] = field(default_factory=Counter)

    def count_step(self, plan: StepPlan, shape: StepShape) -> None:
        """Add what was launched: a step, or a chain of them."""
        num_steps = plan.chain_length
        self.num_step_tokens += num_steps * plan.num_tokens
        self.num_padding_tokens += num_steps * (shape.num_tokens - plan.num_tokens)
        self.num_decode_tokens += num_steps * plan.num_decode_tokens
        self.steps_by_shape[shape] += num_steps

    def count_end(self, completion: Completion) -> None:
        """Add an ended request."""
        request = completion.request
        if request.finish_reason is not None:
            self.num_finished[request.finish_reason.value] += 1
        self.num_prompt_tokens += request.num_prompt_tokens
        self.num_output_tokens += request.num_output_tokens

    def snapshot(self, scheduler: SchedulerMetrics) -> EngineMetrics:
        """The counts as frozen data."""
        return EngineMetrics(
            scheduler=scheduler,
            num_steps=sum(self.steps_by_shape.values()),
            num_step_tokens=self.num_step_tokens,
            num_padding_tokens=self.num_padding_tokens,
            num_decode_tokens=self.num_decode_tokens,
            steps_by_shape=dict(self.steps_by_shape),
            num_finished=dict(self.num_finished),
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
        )

"""Counts of what an engine has done, cheap enough to keep always."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, fields

import numpy as np

from fastgen_jax.batching import StepShape
from fastgen_jax.completion import Completion
from fastgen_jax.markup import table
from fastgen_jax.scheduling.metrics import SchedulerMetrics
from fastgen_jax.scheduling.plan import Reason, StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMetrics:
    """A snapshot; counters start with the engine.

    Attributes:
        scheduler: queue lengths, blocks, prefix hit rate, preemptions.
        num_steps: steps launched; those of a chain count each.
        num_step_tokens: tokens computed, those recomputed or dropped included.
        num_padding_tokens: places of the compiled shapes that held no token.
        num_decode_tokens: of num_step_tokens, decodes; the rest is prefill.
        num_recomputed_tokens: of the prefill tokens, those that had been computed before their
            request was preempted.
        reasons: how often a plan gave each reason; a chain's decodes count once a step.
        steps_by_shape: steps launched per compiled shape.
        num_finished: ended requests by finish reason.
        num_prompt_tokens: prompt tokens of ended requests.
        num_output_tokens: output tokens of ended requests.
        num_programs: compiled programs that are ready; 0 for an engine without any.
        num_compilations_since_start: programs that XLA compiled in this process since the engine
            was ready. Those of ``compile_in_background``, and of other JAX code; else 0.
    """

    scheduler: SchedulerMetrics
    num_steps: int
    num_step_tokens: int
    num_padding_tokens: int
    num_decode_tokens: int
    num_recomputed_tokens: int
    reasons: dict[Reason, int]
    steps_by_shape: dict[StepShape, int]
    num_finished: dict[str, int]
    num_prompt_tokens: int
    num_output_tokens: int
    num_programs: int = 0
    num_compilations_since_start: int = 0

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens computed of prompts, and after preemptions again."""
        return self.num_step_tokens - self.num_decode_tokens

    @property
    def padding_fraction(self) -> float:
        """Share of the launched places that held no token."""
        places = self.num_step_tokens + self.num_padding_tokens
        return self.num_padding_tokens / places if places else 0.0

    def as_dict(self) -> dict[str, int | float]:
        """Everything as plain numbers by dotted names, such as "reasons.no_row"."""
        grouped = ("scheduler", "reasons", "steps_by_shape", "num_finished")
        names = [field.name for field in fields(self) if field.name not in grouped]
        flat: dict[str, int | float] = {name: getattr(self, name) for name in names}
        flat["num_prefill_tokens"] = self.num_prefill_tokens
        flat["padding_fraction"] = self.padding_fraction
        for name, value in asdict(self.scheduler).items():
            flat[f"scheduler.{name}"] = value
        flat["scheduler.prefix_hit_rate"] = self.scheduler.prefix_hit_rate
        for reason, number in self.reasons.items():
            flat[f"reasons.{reason.value}"] = number
        for shape, number in self.steps_by_shape.items():
            flat[f"steps_by_shape.{shape.num_tokens}x{shape.num_rows}"] = number
        for finish, number in self.num_finished.items():
            flat[f"num_finished.{finish}"] = number
        return flat

    def _repr_html_(self) -> str:
        return table(self.as_dict().items(), head=("metric", "value"))


@dataclass(slots=True)
class StepCounters:
    """The running counts behind EngineMetrics."""

    num_step_tokens: int = 0
    num_padding_tokens: int = 0
    num_decode_tokens: int = 0
    num_recomputed_tokens: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    steps_by_shape: Counter[StepShape] = field(default_factory=Counter)
    num_finished: Counter[str] = field(default_factory=Counter)
    # Not a dictionary by reason: enumerations are hashed in Python, too slowly for every step.
    num_decodes: int = 0
    num_chunks: int = 0
    num_last_chunks: int = 0
    num_preempted: int = 0
    waits: Counter[str] = field(default_factory=Counter)

    def count_plan(self, plan: StepPlan) -> None:
        """Add a plan's decisions, without making them; also of one that isn't launched."""
        num_decodes = plan.num_decode_tokens
        self.num_decodes += num_decodes * plan.chain_length
        num_prompts = len(plan.rows.requests) - num_decodes
        if num_prompts:
            num_last = int(np.count_nonzero(plan.rows.samples)) - num_decodes
            self.num_last_chunks += num_last
            self.num_chunks += num_prompts - num_last
            if self.num_preempted:
                self.num_recomputed_tokens += _num_recomputed(plan)
        for _, reason in plan.waits:
            self.waits[reason._value_] += 1
        self.num_preempted += len(plan.preempted)

    @property
    def reasons(self) -> dict[Reason, int]:
        """How often each reason was given."""
        ran = {
            Reason.DECODE: self.num_decodes,
            Reason.CHUNK: self.num_chunks,
            Reason.LAST_CHUNK: self.num_last_chunks,
            Reason.PREEMPTED: self.num_preempted,
        }
        return {reason: ran.get(reason, 0) + self.waits[reason.value] for reason in Reason}

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
            num_recomputed_tokens=self.num_recomputed_tokens,
            reasons=self.reasons,
            steps_by_shape=dict(self.steps_by_shape),
            num_finished=dict(self.num_finished),
            num_prompt_tokens=self.num_prompt_tokens,
            num_output_tokens=self.num_output_tokens,
        )


def _num_recomputed(plan: StepPlan) -> int:
    """Tokens of the plan's chunks that their requests had computed before a preemption."""
    total = 0
    for index in range(plan.num_settled, len(plan.rows.requests)):
        lost = plan.rows.requests[index].num_lost_tokens
        if lost:
            start, length = int(plan.rows.starts[index]), int(plan.rows.lengths[index])
            total += max(min(start + length, lost) - start, 0)
    return total

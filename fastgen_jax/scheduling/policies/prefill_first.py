"""Prompts first, whole and alone; decodes stall meanwhile."""

from __future__ import annotations

from fastgen_jax.scheduling.policies.arrival import Fcfs
from fastgen_jax.scheduling.rules import StepRules
from fastgen_jax.scheduling.views import StepView

_PROMPTS_ALONE = StepRules(stalls_decodes=True)


class PrefillFirst(Fcfs):
    """While a waiting prompt fits, steps run whole prompts and nothing else.

    The scheme of vLLM in 2023 (Kwon et al., SOSP 2023, and its releases up to chunked prefill),
    with this scheduler's admission and preemption by recomputation.
    """

    whole_prompts = True

    def compose(self, step: StepView) -> StepRules:
        """Prompts alone, if there are any."""
        return _PROMPTS_ALONE

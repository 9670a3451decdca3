"""A batch at a time: nobody joins until everybody has left."""

from __future__ import annotations

from fastgen_jax.scheduling.policies.arrival import Fcfs
from fastgen_jax.scheduling.rules import StepRules
from fastgen_jax.scheduling.views import RequestView, StepView

_OPEN = StepRules(stalls_decodes=True)
_CLOSED = StepRules(stalls_decodes=True, admits=False)


class StaticBatching(Fcfs):
    """Prompts are taken in until the first of their decodes; the next batch waits for all to end.

    What serving was before iteration-level scheduling. Rows of requests that ended are left out
    of the steps, where a static batch would go on computing them.
    """

    def compose(self, step: StepView) -> StepRules:
        """Prompts alone while the batch is open, then decodes alone."""
        stages = (step.draining, step.decoding)
        is_open = all(_has_one_token(request) for stage in stages for request in stage)
        return _OPEN if is_open else _CLOSED


def _has_one_token(request: RequestView) -> bool:
    return request.num_tokens == request.num_prompt_tokens + 1

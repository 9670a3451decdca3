"""Recording an engine's steps, so that costs can be fitted to them."""

from __future__ import annotations

from fastgen_jax.observe.observer import Observer
from fastgen_jax.scheduling.plan import StepPlan
from fastgen_jax.sim.costs.fitted import RecordedStep
from fastgen_jax.sim.load import StepLoad


class StepRecorder(Observer):
    """Shown every plan of an engine with two launches in flight, it knows how long steps took.

    When a plan is made, the launch before the last has just been read, and the plan before was made
    when it began; so the time between is that launch's. Chains, and steps beside an empty plan, are
    left out. Pass it to ``LLM`` or ``fake_engine`` in ``observers``.

    Attributes:
        steps: what was recorded, in order.
    """

    def __init__(self) -> None:
        self.steps: list[RecordedStep] = []
        self._loads: list[StepLoad | None] = [None, None]  # of the last two plans
        self._before: float | None = None

    def planned(self, plan: StepPlan) -> None:
        """Another plan was made."""
        now = plan.time
        load = StepLoad.of(plan) if not plan.is_empty and plan.chain_length == 1 else None
        older, newer = self._loads
        # After an empty plan nobody may have stepped the engine for a while.
        if self._before is not None and older and newer and now > self._before:
            self.steps.append(RecordedStep(older, now - self._before))
        self._loads = [newer, load]
        self._before = now

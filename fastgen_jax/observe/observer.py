"""What an engine tells those who watch it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastgen_jax.batching import StepShape
from fastgen_jax.request import Request
from fastgen_jax.scheduling.plan import StepPlan
from fastgen_jax.scheduling.policy import Policy


class Observer:
    """Told of everything that happens in an engine; each method does nothing unless overridden.

    Calls come from the thread that steps the engine, in the order of events, and hold it up for as
    long as they take. Submissions, aborts and new shapes are told before the plan that they can
    change; an abort is an end with ABORT. All times are of the engine's clock.
    """

    def shapes_changed(self, shapes: Sequence[StepShape]) -> None:
        """Steps have one of these shapes from now on; told once before the first step."""

    def policy_changed(self, policy: str | Policy, token_budget: int) -> None:
        """Another policy plans from now on, with at most so many tokens a step."""

    def submitted(self, requests: Sequence[Request]) -> None:
        """A call of ``submit`` queued these, one for each completion."""

    def planned(self, plan: StepPlan) -> None:
        """A plan was made at ``plan.time``; an empty one isn't launched."""

    def launched(self, plan: StepPlan, shape: StepShape) -> None:
        """A plan was given to the device in a compiled shape."""

    def read(self, plan: StepPlan, step: int, token_ids: Sequence[int], now: float) -> None:
        """The results of a step came; ``step`` counts within the plan's chain.

        ``token_ids`` has an entry for each of the plan's rows at least, which means something where
        the row samples and its request hadn't ended before.
        """

    def ended(self, request: Request, now: float) -> None:
        """A request has ended; ``finish_reason`` says why."""

    def failed(self, problem: str) -> None:
        """A step failed; told before the ends of all requests, which are all that follow."""

    def closed(self) -> None:
        """The engine was closed; told last, and once."""


class PlanWatcher(Observer):
    """Calls a function with every plan."""

    def __init__(self, on_plan: Callable[[StepPlan], None]) -> None:
        self._on_plan = on_plan

    def planned(self, plan: StepPlan) -> None:
        """Pass it on."""
        self._on_plan(plan)

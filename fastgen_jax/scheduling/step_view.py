"""The scheduler's state as a policy sees it before a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastgen_jax.scheduling.plan import StepPlan
from fastgen_jax.scheduling.running import RunningSet
from fastgen_jax.scheduling.views import RequestView
from fastgen_jax.scheduling.waiting import WaitingQueue


class SchedulerView:
    """A ``StepView`` that reads through to the scheduler's own sets."""

    __slots__ = ("_clock", "_running", "_waiting", "last_num_tokens", "now", "token_budget")

    def __init__(
        self,
        *,
        token_budget: int,
        running: RunningSet,
        waiting: WaitingQueue,
        clock: Callable[[], float],
    ) -> None:
        self.token_budget = token_budget
        self.last_num_tokens = 0
        self.now = 0.0
        self._running = running
        self._waiting = waiting
        self._clock = clock

    def begin(self) -> None:
        """Stop the clock for one plan, so that its reading is all that can differ."""
        self.now = self._clock()

    def made(self, plan: StepPlan) -> None:
        """Remember the size of the plan that was just made."""
        self.last_num_tokens = plan.num_tokens if plan.chain_length == 1 else 0

    @property
    def num_waiting(self) -> int:
        """Requests without a row."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests with a row, in whichever stage."""
        return len(self._running)

    @property
    def prefilling(self) -> Iterable[RequestView]:
        """Running requests with known tokens to compute."""
        return iter(self._running.prefilling)

    @property
    def decoding(self) -> Iterable[RequestView]:
        """Running requests whose next token is all there is to compute."""
        return iter(self._running.decoding)

    @property
    def draining(self) -> Iterable[RequestView]:
        """Running requests whose last token is in flight."""
        return iter(self._running.draining)

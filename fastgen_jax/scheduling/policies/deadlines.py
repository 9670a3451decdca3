"""SplitFuse by deadlines: first tokens in time, and steps short enough for those that decode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fastgen_jax.errors import ConfigError
from fastgen_jax.scheduling.policies.step_times import StepTimes
from fastgen_jax.scheduling.rules import SPLITFUSE, StepRules
from fastgen_jax.scheduling.views import RequestView, StepView


class Deadlines:
    """The earliest deadline of a first token goes first; prompts leave room for the decodes' pace.

    A request's ``targets`` say what it wants. Without ``ttft`` it goes behind those that have one,
    by arrival. While requests with a ``tpot`` decode, a step gets no more prompt tokens than let it
    end within the strictest of them, but always ``min_prompt_tokens``, so that prompts move on even
    where the pace can't be kept.

    How long a step takes is learned from the time between plans, or given as ``step_seconds``:
    seconds of a step of so many tokens.
    """

    def __init__(
        self,
        *,
        min_prompt_tokens: int = 64,
        step_seconds: Callable[[int], float] | None = None,
    ) -> None:
        if min_prompt_tokens < 1:
            raise ConfigError(
                "must be at least 1, or prompts could starve",
                field="min_prompt_tokens",
                value=min_prompt_tokens,
            )
        self._min_prompt_tokens = min_prompt_tokens
        self._times = StepTimes()
        self._step_seconds = step_seconds

    def rank(self, request: RequestView) -> float:
        """When its first token is due."""
        return _deadline(request)

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        """By deadline, then by arrival."""
        return sorted(candidates, key=_deadline_and_arrival)

    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        """The last in that order."""
        return max(running, key=_deadline_and_arrival)

    def compose(self, step: StepView) -> StepRules:
        """Fewer prompt tokens where a pace is to be kept."""
        self._times.observe(step.now, step.last_num_tokens)
        paces = [request.targets.tpot for request in step.decoding]
        pace = min((pace for pace in paces if pace is not None), default=None)
        if pace is None:
            return SPLITFUSE
        room = self._tokens_within(pace, step.token_budget)
        if room is None:
            return SPLITFUSE
        return StepRules(prompt_tokens=max(room - len(paces), self._min_prompt_tokens))

    def _tokens_within(self, seconds: float, budget: int) -> int | None:
        """Most tokens of a step that ends in time; None while nobody knows."""
        if self._step_seconds is None:
            return self._times.tokens_within(seconds, budget)
        low, high = 0, budget
        while low < high:
            middle = (low + high + 1) // 2
            if self._step_seconds(middle) <= seconds:
                low = middle
            else:
                high = middle - 1
        return low


def _deadline(request: RequestView) -> float:
    ttft = request.targets.ttft
    return math.inf if ttft is None else request.arrival_time + ttft


def _deadline_and_arrival(request: RequestView) -> tuple[float, int]:
    return _deadline(request), request.arrival_index

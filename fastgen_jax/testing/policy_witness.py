"""A policy that is watched: what the scheduler would quietly repair is written down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

from fastgen_jax.scheduling.policy import (
    ComposingPolicy,
    Policy,
    RankedPolicy,
    RequestView,
    StepRules,
    StepView,
    runs_whole_prompts,
)


def watched(policy: Policy, problems: list[str]) -> Policy:
    """The policy, with the same methods; every answer it shouldn't have given goes to ``problems``.

    An error it raises is written down as well, and raised.
    """
    witness = _Witness(policy, problems)
    methods: dict[str, Any] = {"order": witness.order, "choose_victim": witness.choose_victim}
    if isinstance(policy, RankedPolicy):
        methods["rank"] = witness.rank
    if isinstance(policy, ComposingPolicy):
        methods["compose"] = witness.compose
    if runs_whole_prompts(policy):
        methods["whole_prompts"] = True
    # The scheduler asks by method, so a wrapper must have exactly those that the policy has.
    statics = {
        name: staticmethod(value) if callable(value) else value for name, value in methods.items()
    }
    return cast(Policy, type("WatchedPolicy", (), statics)())


class _Witness:
    """Asks the policy and looks at its answers."""

    def __init__(self, policy: Any, problems: list[str]) -> None:
        self._policy = policy
        self._problems = problems

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        """A permutation, or a problem."""
        answer = list(self._ask("order", candidates, candidates))
        if {id(view) for view in answer} != {id(view) for view in candidates}:
            self._complain("order", "left out or invented requests")
        elif len(answer) != len(candidates):
            self._complain("order", "repeated a request")
        return answer

    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        """One of those offered, or a problem."""
        answer = self._ask("choose_victim", running, running)
        if not any(answer is view for view in running):
            self._complain("choose_victim", f"gave {answer!r}, which wasn't offered")
        return answer

    def rank(self, request: RequestView) -> float:
        """A number, or a problem; infinity goes last."""
        answer = self._ask("rank", (request,), request)
        if not isinstance(answer, int | float) or math.isnan(answer):
            self._complain("rank", f"gave {answer!r}, which is no number")
        return answer

    def compose(self, step: StepView) -> StepRules:
        """Rules, or a problem."""
        running = [*step.prefilling, *step.decoding, *step.draining]
        answer = self._ask("compose", running, step)
        if not isinstance(answer, StepRules):
            self._complain("compose", f"gave {answer!r}, not StepRules")
        return answer

    def _ask(self, method: str, views: Sequence[RequestView], argument: object) -> Any:
        before = [_state(view) for view in views]
        try:
            answer = getattr(self._policy, method)(argument)
        except Exception as error:
            self._complain(method, f"raised {error!r}")
            raise
        if [_state(view) for view in views] != before:
            self._complain(method, "changed a request, which is the scheduler's")
        return answer

    def _complain(self, method: str, problem: str) -> None:
        self._problems.append(f"{method} {problem}")


def _state(view: RequestView) -> tuple[object, ...]:
    return (
        view.request_id,
        view.arrival_index,
        view.arrival_time,
        view.priority,
        view.targets,
        view.num_prompt_tokens,
        view.max_output_tokens,
        view.num_tokens,
        view.num_computed_tokens,
        view.num_preemptions,
        view.num_skips,
    )

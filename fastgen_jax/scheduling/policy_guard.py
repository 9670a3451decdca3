"""A policy's answers made safe: always a permutation, always a victim from the list."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from operator import attrgetter
from typing import cast

from fastgen_jax.request import Request
from fastgen_jax.scheduling.protocols import (
    ComposingPolicy,
    Policy,
    RankedPolicy,
    runs_whole_prompts,
)
from fastgen_jax.scheduling.rules import SPLITFUSE, StepRules
from fastgen_jax.scheduling.views import StepView

logger = logging.getLogger(__name__)

_arrival = attrgetter("arrival_index")


class PolicyGuard:
    """Asks a policy and repairs its answers, so that a bad policy is slow but never wrong.

    ``whole_prompts`` is True when a prompt is to run in one step or to wait.
    """

    __slots__ = ("_composing", "_has_failed", "_policy", "_ranked", "whole_prompts")

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._ranked = policy if isinstance(policy, RankedPolicy) else None
        self._composing = policy if isinstance(policy, ComposingPolicy) else None
        self.whole_prompts = runs_whole_prompts(policy)
        self._has_failed = False

    @property
    def is_ranked(self) -> bool:
        """True when the order of waiting requests is a fixed number for each."""
        return self._ranked is not None

    @property
    def composes_steps(self) -> bool:
        """True when the policy has rules of its own for each step."""
        return self._composing is not None

    def compose(self, step: StepView) -> StepRules:
        """The policy's rules of a step; SplitFuse's when it has none."""
        if self._composing is None:
            return SPLITFUSE
        try:
            rules = cast(object, self._composing.compose(step))
            if isinstance(rules, StepRules):
                return rules
            raise TypeError(f"compose gave {rules!r}, not StepRules")
        except Exception:
            self._report("compose")
            return SPLITFUSE

    def rank(self, request: Request) -> float:
        """The policy's rank of a request, 0 without one; infinite when it isn't a number."""
        if self._ranked is None:
            return 0.0
        try:
            rank = float(self._ranked.rank(request))
        except Exception:
            self._report("rank")
            return math.inf
        return math.inf if math.isnan(rank) else rank

    def order(self, candidates: Sequence[Request]) -> list[Request]:
        """Each candidate once: as the policy says, those it left out last by arrival."""
        if len(candidates) < 2:
            return list(candidates)
        pending = {id(request): request for request in candidates}
        ordered: list[Request] = []
        try:
            for view in self._policy.order(tuple(candidates)):
                request = pending.pop(id(view), None)
                if request is not None:
                    ordered.append(request)
        except Exception:
            self._report("order")
        if pending:
            ordered.extend(sorted(pending.values(), key=_arrival))
        return ordered

    def choose_victim(self, candidates: Sequence[Request]) -> Request:
        """The candidate the policy picks; the newest when it picks none of them."""
        try:
            view = self._policy.choose_victim(tuple(candidates))
        except Exception:
            self._report("choose_victim")
            view = None
        for request in candidates:
            if request is view:
                return request
        return max(candidates, key=_arrival)

    def _report(self, method: str) -> None:
        if not self._has_failed:
            logger.exception(
                "policy %r raised in %s; going on as if it had said nothing (reported once)",
                self._policy,
                method,
            )
        self._has_failed = True

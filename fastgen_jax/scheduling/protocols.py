"""The questions a scheduler asks a policy: who goes first, who gives way, what a step holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from fastgen_jax.scheduling.rules import StepRules
from fastgen_jax.scheduling.views import RequestView, StepView


@runtime_checkable
class Policy(Protocol):
    """Decides order only: the scheduler keeps budget, rows and blocks whatever it answers.

    Entries that ``order`` leaves out come last in order of arrival; repeated and foreign ones are
    ignored. A victim that isn't among those offered is replaced by the newest of them. A policy
    that raises is logged and treated as if it had answered nothing. Decodes aren't ordered
    while there is enough for all of them.
    """

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        """The candidates, most urgent first."""
        ...

    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        """The one of these to preempt, so that a decode gets a block."""
        ...


@runtime_checkable
class RankedPolicy(Policy, Protocol):
    """A policy whose order is a fixed number per request: keeps a long queue sorted for free.

    Without ``rank``, the whole queue is passed to ``order`` in a step that may admit, unless the
    queue is what it was and no running request has ended since ``order`` was last asked.
    """

    def rank(self, request: RequestView) -> float:
        """Lower goes first, ties in order of arrival; asked once, when the request is queued."""
        ...


@runtime_checkable
class ComposingPolicy(Policy, Protocol):
    """A policy that also says how each step is composed; without it, steps are SplitFuse's."""

    def compose(self, step: StepView) -> StepRules:
        """The rules of the next step; asked before every one."""
        ...


@runtime_checkable
class WholePromptsPolicy(Policy, Protocol):
    """A policy whose prompts run in one step or wait, where ``whole_prompts`` is True.

    The scheduler then refuses prompts longer than its token budget when they are submitted. Only
    what a preempted request has to compute again may be longer; it is cut.
    """

    whole_prompts: bool


def runs_whole_prompts(policy: Policy) -> bool:
    """Whether the policy says so; it is asked once, when its scheduler is made."""
    return isinstance(policy, WholePromptsPolicy) and policy.whole_prompts

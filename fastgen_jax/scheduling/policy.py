"""Policies by name, and all that one of your own needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from fastgen_jax.errors import ConfigError
from fastgen_jax.scheduling.policies.arrival import Fcfs, Priority
from fastgen_jax.scheduling.policies.deadlines import Deadlines
from fastgen_jax.scheduling.policies.fixed_chunk import FixedChunk
from fastgen_jax.scheduling.policies.iteration_level import IterationLevel
from fastgen_jax.scheduling.policies.prefill_first import PrefillFirst
from fastgen_jax.scheduling.policies.shortest_remaining import ShortestRemaining
from fastgen_jax.scheduling.policies.static_batching import StaticBatching
from fastgen_jax.scheduling.protocols import (
    ComposingPolicy,
    Policy,
    RankedPolicy,
    WholePromptsPolicy,
    runs_whole_prompts,
)
from fastgen_jax.scheduling.rules import SPLITFUSE, StepRules
from fastgen_jax.scheduling.views import RequestView, StepView

__all__ = [
    "POLICIES",
    "SPLITFUSE",
    "ComposingPolicy",
    "Deadlines",
    "Fcfs",
    "FixedChunk",
    "IterationLevel",
    "Policy",
    "PrefillFirst",
    "Priority",
    "RankedPolicy",
    "RequestView",
    "ShortestRemaining",
    "StaticBatching",
    "StepRules",
    "StepView",
    "WholePromptsPolicy",
    "get_policy",
    "runs_whole_prompts",
]

POLICIES: dict[str, Callable[[], Policy]] = {
    "fcfs": Fcfs,
    "priority": Priority,
    "shortest_remaining": ShortestRemaining,
    "deadlines": Deadlines,
    "iteration_level": IterationLevel,
    "prefill_first": PrefillFirst,
    "fixed_chunk": FixedChunk,
    "static_batching": StaticBatching,
}
"""Known policies by name. "fcfs", "priority" and those after them up to "deadlines" are Dynamic
SplitFuse in different orders; the others compose steps as earlier engines did."""


def get_policy(name_or_object: str | Policy) -> Policy:
    """The policy of this name, or the object itself when it has a policy's methods."""
    if isinstance(name_or_object, str):
        factory = POLICIES.get(name_or_object)
        if factory is not None:
            return factory()
    elif isinstance(cast(object, name_or_object), Policy):
        return name_or_object
    raise ConfigError(
        "is no scheduling policy",
        field="policy",
        value=name_or_object,
        remedy=f"known ones are {', '.join(POLICIES)}; or pass an object with the methods "
        "order and choose_victim",
    )

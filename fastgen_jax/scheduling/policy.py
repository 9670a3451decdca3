"""Who goes first and who gives way: the two questions a scheduler leaves to a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast, runtime_checkable

from fastgen_jax.errors import ConfigError


class RequestView(Protocol):
    """What a policy sees of a request; the request itself, so building it costs nothing."""

    @property
    def request_id(self) -> str:
        """Unique within the engine."""
        ...

    @property
    def arrival_index(self) -> int:
        """Position in the order of submission; unique."""
        ...

    @property
    def arrival_time(self) -> float:
        """Seconds on the engine's clock."""
        ...

    @property
    def priority(self) -> int:
        """What the caller asked for; lower is more urgent."""
        ...

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        ...

    @property
    def max_output_tokens(self) -> int:
        """Most tokens it may generate."""
        ...

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens so far, in-flight ones included."""
        ...

    @property
    def num_computed_tokens(self) -> int:
        """Those of them whose keys and values are, or are about to be, in the cache."""
        ...

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were found in the prefix cache."""
        ...

    @property
    def num_preemptions(self) -> int:
        """How often it lost its blocks."""
        ...

    @property
    def num_skips(self) -> int:
        """How many requests were admitted past it while it waited for blocks."""
        ...


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


class Fcfs:
    """First come, first served; the newest gives way."""

    def rank(self, request: RequestView) -> float:
        """The same for all: arrival decides."""
        return 0.0

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        """By arrival."""
        return sorted(candidates, key=_arrival)

    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        """The newest."""
        return max(running, key=_arrival)


class Priority:
    """Lower priority values first, then by arrival; the lowest ranked, newest gives way."""

    def rank(self, request: RequestView) -> float:
        """The priority."""
        return request.priority

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        """By priority, then by arrival."""
        return sorted(candidates, key=_priority_and_arrival)

    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        """The newest of those with the highest priority value."""
        return max(running, key=_priority_and_arrival)


POLICIES: dict[str, Callable[[], Policy]] = {"fcfs": Fcfs, "priority": Priority}
"""Known policies by name."""


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


def _arrival(request: RequestView) -> int:
    return request.arrival_index


def _priority_and_arrival(request: RequestView) -> tuple[int, int]:
    return request.priority, request.arrival_index

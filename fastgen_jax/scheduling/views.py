"""What a policy sees of requests and of a step, to be read only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from fastgen_jax.latency_targets import LatencyTargets


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
    def targets(self) -> LatencyTargets:
        """How fast it wants its tokens."""
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


class StepView(Protocol):
    """What a policy sees before a step; nothing is computed until it is looked at."""

    @property
    def now(self) -> float:
        """Seconds on the clock of ``RequestView.arrival_time``."""
        ...

    @property
    def token_budget(self) -> int:
        """Most tokens in a step."""
        ...

    @property
    def last_num_tokens(self) -> int:
        """Tokens of the plan before this one; 0 if it was empty, or a chain of steps."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests without a row."""
        ...

    @property
    def num_running(self) -> int:
        """Requests with a row, in whichever stage."""
        ...

    @property
    def prefilling(self) -> Iterable[RequestView]:
        """Running requests with known tokens to compute."""
        ...

    @property
    def decoding(self) -> Iterable[RequestView]:
        """Running requests whose next token is all there is to compute."""
        ...

    @property
    def draining(self) -> Iterable[RequestView]:
        """Running requests whose last token is in flight."""
        ...

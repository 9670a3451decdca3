"""A request on its way to a simulated or real engine."""

from __future__ import annotations

from dataclasses import dataclass

from fastgen_jax.errors import ConfigError
from fastgen_jax.latency_targets import LatencyTargets

_NO_TARGETS = LatencyTargets()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What a client sends, and what it will get.

    Attributes:
        time: seconds on the run's clock.
        prompt_token_ids: the prompt.
        num_output_tokens: tokens after which the request ends.
        max_tokens: what the scheduler is told; None: ``num_output_tokens``, so that it knows the
            end. More: the end comes as a surprise, as an EOS token would.
        priority, targets, cache_salt: as in ``Engine.submit``.
        client: who sends it, where the workload has clients or conversations.
    """

    time: float
    prompt_token_ids: tuple[int, ...]
    num_output_tokens: int
    max_tokens: int | None = None
    priority: int = 0
    targets: LatencyTargets = _NO_TARGETS
    cache_salt: str | None = None
    client: int | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be sent."""
        if self.num_output_tokens < 1:
            raise ConfigError(
                "must be at least 1", field="num_output_tokens", value=self.num_output_tokens
            )
        if self.max_tokens is not None and self.max_tokens < self.num_output_tokens:
            raise ConfigError(
                f"is less than num_output_tokens={self.num_output_tokens}",
                field="max_tokens",
                value=self.max_tokens,
                remedy="leave it out",
            )

"""Counts of a scheduler at one moment."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerMetrics:
    """What a scheduler holds now, and what it has done since it was made.

    Attributes:
        num_running: requests that hold a device row.
        num_waiting: requests queued.
        num_blocks: blocks that requests can hold.
        num_free_blocks: of these, free or only cached ones.
        num_cached_blocks: of the free ones, those whose content is still findable.
        num_steps: plans made.
        num_preemptions: times a request lost its blocks.
        num_queried_tokens: tokens that admissions looked for in the prefix cache.
        num_hit_tokens: of these, tokens found, also by prompts that were already running.
    """

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    num_steps: int
    num_preemptions: int
    num_queried_tokens: int
    num_hit_tokens: int

    @property
    def prefix_hit_rate(self) -> float:
        """Share of the queried tokens that didn't have to be computed; 0 before any query."""
        return self.num_hit_tokens / self.num_queried_tokens if self.num_queried_tokens else 0.0

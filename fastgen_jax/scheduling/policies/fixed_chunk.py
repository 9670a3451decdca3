"""Decodes, and one prompt's chunk of a fixed length."""

from __future__ import annotations

from fastgen_jax.errors import ConfigError
from fastgen_jax.scheduling.policies.arrival import Fcfs
from fastgen_jax.scheduling.rules import StepRules
from fastgen_jax.scheduling.views import StepView


class FixedChunk(Fcfs):
    """Every step has at most one chunk of at most ``chunk_size`` tokens, beside all decodes.

    The scheme of Sarathi (Agrawal et al., arXiv 2308.16369): a step isn't filled up with the next
    prompt when one ends.
    """

    def __init__(self, chunk_size: int = 256) -> None:
        if chunk_size < 1:
            raise ConfigError("must be at least 1", field="chunk_size", value=chunk_size)
        self._rules = StepRules(max_chunk=chunk_size, max_prompts=1)

    def compose(self, step: StepView) -> StepRules:
        """Decodes first, then the one chunk."""
        return self._rules

"""How a policy wants one step composed."""

from __future__ import annotations

from dataclasses import dataclass

from fastgen_jax.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRules:
    """How one step is filled; the defaults are Dynamic SplitFuse.

    Budget, rows and blocks bound a step whatever is said here. Rules that leave a step empty
    although something could run are set aside for that step.

    Attributes:
        stalls_decodes: prompts are offered the step first, and where one of them runs no decode
            does; otherwise decodes come first and prompts take what they leave.
        admits: whether waiting requests may take a row in this step.
        prompt_tokens: most tokens of all prompts in this step; None: what the decodes leave.
        max_chunk: most tokens of one prompt in this step; None: no limit.
        max_prompts: most prompts in this step; None: no limit.
    """

    stalls_decodes: bool = False
    admits: bool = True
    prompt_tokens: int | None = None
    max_chunk: int | None = None
    max_prompts: int | None = None

    def __post_init__(self) -> None:
        """Refuse limits that are none."""
        for name, low in (("prompt_tokens", 0), ("max_chunk", 1), ("max_prompts", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < low):
                raise ConfigError(f"must be an integer from {low} on", field=name, value=value)


SPLITFUSE = StepRules()
"""Decodes first, then prompts in chunks of whatever is left."""

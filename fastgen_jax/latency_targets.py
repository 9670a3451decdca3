"""How fast a request wants its tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastgen_jax.errors import InvalidRequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTargets:
    """What a request hopes for; a policy may aim at it, and goodput counts who got it.

    A missed target changes nothing for the request.

    Attributes:
        ttft: seconds from arrival to the first token; None: no wish.
        tpot: seconds per token after the first, on average; None: no wish.
    """

    ttft: float | None = None
    tpot: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        for name in ("ttft", "tpot"):
            value = getattr(self, name)
            if value is None:
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or value <= 0:
                raise InvalidRequestError(
                    "must be a finite number of seconds above 0",
                    field=name,
                    value=value,
                    remedy="leave it out for no target",
                )

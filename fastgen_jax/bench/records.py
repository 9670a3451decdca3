"""What is known of a request after a run: when it came, and when each of its tokens did."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from fastgen_jax.latency_targets import LatencyTargets

_NO_TARGETS = LatencyTargets()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RequestRecord:
    """One request of a measured or simulated run; all times are seconds on one clock.

    Attributes:
        request_id: unique in the run.
        arrival_time: when it was sent.
        num_prompt_tokens: length of its prompt.
        token_times: when the client got each output token, in order; empty if it got none.
        first_scheduled_time: when it was first given a row; None where that isn't known.
        num_cached_tokens: prompt tokens that were found in the prefix cache.
        num_preemptions: how often it lost its blocks.
        is_complete: False where it failed or was aborted.
        targets: what it hoped for.
        client: which client sent it, where there are several.
    """

    request_id: str
    arrival_time: float
    num_prompt_tokens: int
    token_times: Float64[np.ndarray, "N"]
    first_scheduled_time: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    is_complete: bool = True
    targets: LatencyTargets = _NO_TARGETS
    client: int | None = None

    @property
    def num_output_tokens(self) -> int:
        """Tokens that came."""
        return len(self.token_times)

    @property
    def ttft(self) -> float:
        """Seconds to the first token; infinite without one."""
        return float(self.token_times[0]) - self.arrival_time if len(self.token_times) else np.inf

    @property
    def gaps(self) -> Float64[np.ndarray, "N"]:
        """Seconds between each token and the one before, without the first token's."""
        return np.diff(self.token_times)

    @property
    def tpot(self) -> float:
        """Mean seconds per token after the first; 0 where there is only one or none."""
        count = len(self.token_times) - 1
        if count < 1:
            return 0.0
        return float(self.token_times[-1] - self.token_times[0]) / count

    @property
    def finish_time(self) -> float:
        """When the last token came; infinite without one."""
        return float(self.token_times[-1]) if len(self.token_times) else np.inf

    @property
    def latency(self) -> float:
        """Seconds from arrival to the last token; infinite without one."""
        return self.finish_time - self.arrival_time

"""The FastGen paper's service level agreement, and effective throughput under it.

A request passes if its first token comes within ``prompt tokens / prompt_rate`` seconds, and every
value of an exponential moving average of the gaps between its tokens lies under
``1 / token_rate`` seconds (Holmes et al., 2024, arXiv 2401.08671, section 4). The average has the
weights that the paper's scripts use: with a = 2 / (span + 1), a gap i places back weighs (1 - a)^i,
divided by the sum of the weights so far. So the first average is the first gap itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLevel:
    """What a request must get.

    Attributes:
        token_rate: tokens per second after the first; the paper's are 2, 4 and 6.
        prompt_rate: prompt tokens per second until the first.
        span: of the moving average, in tokens.
    """

    token_rate: float
    prompt_rate: float = 512.0
    span: float = 16.0

    def __post_init__(self) -> None:
        """Refuse what is no rate."""
        for name in ("token_rate", "prompt_rate", "span"):
            if not getattr(self, name) > 0:
                raise ConfigError("must be above 0", field=name, value=getattr(self, name))

    def is_first_token_in_time(self, record: RequestRecord) -> bool:
        """Whether the first token came in time; False where none came."""
        return record.ttft <= record.num_prompt_tokens / self.prompt_rate

    def is_pace_kept(self, record: RequestRecord) -> bool:
        """Whether all averages of the gaps lie under the limit; True where there is no gap."""
        averages = moving_averages(record.gaps, self.span)
        return bool(np.all(averages < 1.0 / self.token_rate))

    def passes(self, record: RequestRecord) -> bool:
        """Whether a request that came to its end got both."""
        return (
            record.is_complete and self.is_first_token_in_time(record) and self.is_pace_kept(record)
        )


def moving_averages(gaps: Float64[np.ndarray, "N"], span: float) -> Float64[np.ndarray, "N"]:
    """The exponential moving average after each gap, weights divided by their sum so far."""
    decay = 1.0 - 2.0 / (span + 1.0)
    averages = np.empty(len(gaps))
    total = weight = 0.0
    for index, gap in enumerate(gaps.tolist()):
        total = gap + decay * total
        weight = 1.0 + decay * weight
        averages[index] = total / weight
    return averages


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveThroughput:
    """How much of a run was good enough.

    Attributes:
        requests_per_second: all requests, from the first arrival to the last token.
        num_requests: all of them, failed ones included.
        num_passed: those that got what the service level demands.
        num_late: those whose first token came too late.
        num_slow: those whose pace wasn't kept; some were late as well.
    """

    requests_per_second: float
    num_requests: int
    num_passed: int
    num_late: int
    num_slow: int

    @property
    def share(self) -> float:
        """Passed of all; 0 without any."""
        return self.num_passed / self.num_requests if self.num_requests else 0.0

    @property
    def effective(self) -> float:
        """Requests per second times the share that passed: the paper's effective throughput."""
        return self.requests_per_second * self.share


def effective_throughput(
    records: Sequence[RequestRecord], level: ServiceLevel
) -> EffectiveThroughput:
    """A whole run judged by a service level."""
    return EffectiveThroughput(
        requests_per_second=throughput(records),
        num_requests=len(records),
        num_passed=sum(level.passes(record) for record in records),
        num_late=sum(not level.is_first_token_in_time(record) for record in records),
        num_slow=sum(not level.is_pace_kept(record) for record in records),
    )


def throughput(records: Sequence[RequestRecord]) -> float:
    """Complete requests per second, from the first arrival to the last token; 0 without any."""
    complete = [record for record in records if record.is_complete and record.num_output_tokens]
    if not complete:
        return 0.0
    start = min(record.arrival_time for record in records)
    return len(complete) / (max(record.finish_time for record in complete) - start)

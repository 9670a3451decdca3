"""A run in a few numbers: rates, percentiles, goodput. Nothing is sorted, smoothed or left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.bench.sla import throughput
from fastgen_jax.latency_targets import LatencyTargets


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """A distribution; every value of the run is in it."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float] | Float64[np.ndarray, "N"]) -> Percentiles | None:
        """Linear between neighbours; None without values, infinite where values are."""
        array = np.asarray(values, float)
        if not array.size:
            return None
        ordered = np.sort(array)
        p50, p90, p95, p99 = (_percentile(ordered, share) for share in (0.5, 0.9, 0.95, 0.99))
        return cls(
            mean=float(array.mean()), p50=p50, p90=p90, p95=p95, p99=p99, max=float(ordered[-1])
        )


def _percentile(ordered: Float64[np.ndarray, "N"], share: float) -> float:
    """Without numpy's own, which makes NaN between two infinite values."""
    place = share * (len(ordered) - 1)
    low = int(place)
    weight = place - low
    if not weight:
        return float(ordered[low])
    return float((1 - weight) * ordered[low] + weight * ordered[low + 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run came to; seconds, and requests or tokens per second.

    Attributes:
        num_requests: all records.
        num_failed: those that didn't come to their end.
        requests_per_second: complete ones, from the first arrival to the last token.
        output_tokens_per_second: over the same time, of all requests.
        ttft: of all requests; infinite for those without a token.
        gaps: between tokens of all requests, the first token's wait left out.
        tpot: of requests with at least two tokens.
        latency: from arrival to the last token, of all requests.
        goodput: complete requests per second that met all the targets they had.
        num_met: how many these are.
        num_preemptions: of all requests together.
    """

    num_requests: int
    num_failed: int
    requests_per_second: float
    output_tokens_per_second: float
    ttft: Percentiles | None
    gaps: Percentiles | None
    tpot: Percentiles | None
    latency: Percentiles | None
    goodput: float
    num_met: int
    num_preemptions: int


def summarize(
    records: Sequence[RequestRecord], targets: LatencyTargets | None = None
) -> RunSummary:
    """A run's numbers; ``targets`` judge every request in place of its own."""
    rate = throughput(records)
    complete = [record for record in records if record.is_complete and record.num_output_tokens]
    num_met = sum(meets(record, targets or record.targets) for record in complete)
    seconds = len(complete) / rate if rate else 0.0
    num_tokens = sum(record.num_output_tokens for record in records)
    gaps = [record.gaps for record in records]
    return RunSummary(
        num_requests=len(records),
        num_failed=len(records) - len(complete),
        requests_per_second=rate,
        output_tokens_per_second=num_tokens / seconds if seconds else 0.0,
        ttft=Percentiles.of([record.ttft for record in records]),
        gaps=Percentiles.of(np.concatenate(gaps) if gaps else ()),
        tpot=Percentiles.of([r.tpot for r in records if r.num_output_tokens > 1]),
        latency=Percentiles.of([record.latency for record in records]),
        goodput=num_met / seconds if seconds else 0.0,
        num_met=num_met,
        num_preemptions=sum(record.num_preemptions for record in records),
    )


def meets(record: RequestRecord, targets: LatencyTargets) -> bool:
    """Whether a complete request got its first token and its pace within the targets."""
    in_time = targets.ttft is None or record.ttft <= targets.ttft
    return record.is_complete and in_time and (targets.tpot is None or record.tpot <= targets.tpot)

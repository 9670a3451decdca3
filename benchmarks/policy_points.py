"""A run of the measured comparison as numbers, and what several runs say together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.policy_setups import SPLITFUSE
from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.bench.sla import ServiceLevel, effective_throughput
from fastgen_jax.bench.spread import Spread
from fastgen_jax.bench.summary import summarize


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a run came to; seconds, and requests per second.

    Attributes:
        rate: complete requests per second.
        effective: of these, the ones that got what the service level demands.
        num_requests, num_late, num_slow: as in ``bench.sla.EffectiveThroughput``.
        ttft_p50, ttft_p95: to the first token.
        gap_p50, gap_p95, gap_p99: between tokens.
        latency_mean, latency_p95: from sending to the last token.
    """

    rate: float
    effective: float
    num_requests: int
    num_late: int
    num_slow: int
    ttft_p50: float
    ttft_p95: float
    gap_p50: float
    gap_p95: float
    gap_p99: float
    latency_mean: float
    latency_p95: float

    @classmethod
    def of(cls, records: Sequence[RequestRecord], level: ServiceLevel) -> Point:
        """The numbers of a measured or simulated run."""
        summary, found = summarize(records), effective_throughput(records, level)
        assert summary.ttft is not None
        assert summary.gaps is not None
        assert summary.latency is not None
        return cls(
            rate=summary.requests_per_second,
            effective=found.effective,
            num_requests=found.num_requests,
            num_late=found.num_late,
            num_slow=found.num_slow,
            ttft_p50=summary.ttft.p50,
            ttft_p95=summary.ttft.p95,
            gap_p50=summary.gaps.p50,
            gap_p95=summary.gaps.p95,
            gap_p99=summary.gaps.p99,
            latency_mean=summary.latency.mean,
            latency_p95=summary.latency.p95,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, and the same run simulated with costs fitted to another workload before it."""

    setup: str
    policy: str
    clients: int
    round: int
    measured: Point
    simulated: Point


def ratios(runs: Sequence[Run], setup: str) -> dict[str, Any]:
    """SplitFuse beside each other policy, round by round, as spreads over the rounds.

    Above 1 is better for SplitFuse in all of them. A ratio to 0 is left out and counted.
    """
    found: dict[str, Any] = {}
    mine = [run for run in runs if run.setup == setup]
    for policy in dict.fromkeys(run.policy for run in mine if run.policy != SPLITFUSE):
        by_clients = {
            str(clients): {
                "effective": _over_rounds(mine, policy, clients, "effective"),
                "rate": _over_rounds(mine, policy, clients, "rate"),
                "gap_p95": _over_rounds(mine, policy, clients, "gap_p95", less_is_better=True),
                "gap_p99": _over_rounds(mine, policy, clients, "gap_p99", less_is_better=True),
                "latency_mean": _over_rounds(
                    mine, policy, clients, "latency_mean", less_is_better=True
                ),
            }
            for clients in sorted({run.clients for run in mine})
        }
        found[policy] = {
            "peak_effective": _spread(
                [
                    _ratio(_peak(mine, SPLITFUSE, number), _peak(mine, policy, number))
                    for number in sorted({run.round for run in mine})
                ]
            ),
            "by_clients": by_clients,
        }
    return found


def prediction_errors(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """How far the simulated runs lie from the measured ones, relative to these."""
    errors = {
        name: [
            getattr(run.simulated, name) / getattr(run.measured, name) - 1
            for run in runs
            if getattr(run.measured, name)
        ]
        for name in ("rate", "latency_p95", "gap_p95", "ttft_p95")
    }
    limits = {"rate": 0.1, "latency_p95": 0.2, "gap_p95": 0.2, "ttft_p95": 0.2}
    return {
        name: {
            "median": _median(values),
            "median_size": _median([abs(value) for value in values]),
            "largest_size": max(abs(value) for value in values),
            "limit": limits[name],
            "share_within": sum(abs(value) <= limits[name] for value in values) / len(values),
        }
        for name, values in errors.items()
    }


def report(setup: str, runs: Sequence[Run]) -> str:
    """A setup's curve in lines of text."""
    lines = [f"== {setup}: requests/s, effective, P95 gap, mean latency (simulated)"]
    mine = [run for run in runs if run.setup == setup]
    for policy in dict.fromkeys(run.policy for run in mine):
        lines.append(policy)
        for clients in sorted({run.clients for run in mine}):
            same = [r for r in mine if r.policy == policy and r.clients == clients]
            cells = [
                f"{_median([getattr(run.measured, name) for run in same]):7.3f} "
                f"({_median([getattr(run.simulated, name) for run in same]):.3f})"
                for name in ("rate", "effective", "gap_p95", "latency_mean")
            ]
            lines.append(f"  {clients:3}: {'  '.join(cells)}")
    for policy, found in ratios(runs, setup).items():
        lines.append(f"SplitFuse against {policy}: peak effective {found['peak_effective']}")
        for clients, named in found["by_clients"].items():
            cells = [f"{name} {_short(spread)}" for name, spread in named.items()]
            lines.append(f"  {clients:>3}: {'  '.join(cells)}")
    return "\n".join(lines)


def _over_rounds(
    runs: Sequence[Run], policy: str, clients: int, name: str, *, less_is_better: bool = False
) -> dict[str, Any]:
    """Neighbouring runs of a round see the same machine, so they are divided before all else."""
    values: dict[tuple[str, int], float] = {
        (run.policy, run.round): getattr(run.measured, name)
        for run in runs
        if run.clients == clients
    }
    pairs = [
        (values[SPLITFUSE, number], values[policy, number])
        for number in sorted({number for _, number in values})
    ]
    if less_is_better:
        pairs = [(other, own) for own, other in pairs]
    return _spread([_ratio(above, below) for above, below in pairs])


def _peak(runs: Sequence[Run], policy: str, number: int) -> float:
    return max(r.measured.effective for r in runs if r.policy == policy and r.round == number)


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.inf


def _spread(values: Sequence[float]) -> dict[str, Any]:
    finite = [value for value in values if math.isfinite(value)]
    spread = asdict(Spread.of(finite)) if finite else {"median": None, "low": None, "high": None}
    return {**spread, "count": len(values), "num_infinite": len(values) - len(finite)}


def _median(values: Sequence[float]) -> float:
    return Spread.of(values).median


def _short(spread: Mapping[str, Any]) -> str:
    if spread["median"] is None:
        return "inf"
    more = f", {spread['num_infinite']} inf" if spread["num_infinite"] else ""
    return f"{spread['median']:.2f} ({spread['low']:.2f}-{spread['high']:.2f}{more})"

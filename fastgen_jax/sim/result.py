"""What a simulation leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.scheduling.metrics import SchedulerMetrics
from fastgen_jax.sim.arrival import Arrival


class SimulatedStep(NamedTuple):
    """One launch: when it was planned and ran, in seconds, and what it carried."""

    planned: float
    start: float
    end: float
    chain_length: int
    num_tokens: int  # of one step of the chain
    num_decode_tokens: int
    num_rows: int
    num_waiting: int
    num_preempted: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulationResult:
    """A run, request by request and step by step.

    Attributes:
        records: of every request that ended, in order of their ends.
        steps: every launch in order; one of a chain stands for all its steps.
        refused: arrivals that the scheduler wouldn't take, and why.
        scheduler: the scheduler's counts at the end.
    """

    records: tuple[RequestRecord, ...]
    steps: tuple[SimulatedStep, ...]
    refused: tuple[tuple[Arrival, InvalidRequestError], ...]
    scheduler: SchedulerMetrics

    @property
    def seconds(self) -> float:
        """Virtual time from the first arrival to the last token; 0 without any."""
        if not self.records:
            return 0.0
        return max(r.finish_time for r in self.records) - min(r.arrival_time for r in self.records)

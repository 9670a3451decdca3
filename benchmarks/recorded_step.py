"""The steps that a scheduler really makes of a workload, recorded without a device."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from benchmarks.workload import Workload
from fastgen_jax.batching import StepPacker, StepResults, StepShape
from fastgen_jax.batching.inputs import InputLayout, ResultLayout
from fastgen_jax.engine import Engine
from fastgen_jax.observe.observer import PlanWatcher
from fastgen_jax.sampling import RowLimits
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.scheduling.plan import StepPlan
from fastgen_jax.scheduling.scheduler import Scheduler, SchedulerConfig

DRAWN_TOKEN = 5  # what the missing device answers for every row


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedStep:
    """One launched step.

    Attributes:
        shape: the compiled shape it takes.
        packed: the input vector, as the packer made it.
        rows: the device rows at its launch, packed, by row number.
        num_tokens: tokens in it.
        num_decode_tokens: of these, decodes.
        host_seconds: scheduling and packing it, and reading and ending what the step before gave.
    """

    shape: StepShape
    packed: np.ndarray
    rows: dict[int, np.ndarray]
    num_tokens: int
    num_decode_tokens: int
    host_seconds: float


class Recorder:
    """A device that computes nothing: keeps what it is given, and draws the same token always."""

    def __init__(self, max_logprobs: int) -> None:
        self.rows: dict[int, np.ndarray] = {}
        self.launched: list[tuple[StepShape, np.ndarray, dict[int, np.ndarray]]] = []
        self._max_logprobs = max_logprobs

    def write_row(self, row: int, packed: np.ndarray) -> None:
        """Keep the row."""
        self.rows[row] = packed

    def launch(self, shape: StepShape, packed: np.ndarray) -> _Answer:
        """Keep the step."""
        self.launched.append((shape, packed, dict(self.rows)))
        return _Answer(ResultLayout(shape, self._max_logprobs))

    def close(self) -> None:
        """Nothing to free."""


class _Answer:
    def __init__(self, layout: ResultLayout) -> None:
        self._layout = layout

    def read(self) -> StepResults:
        return StepResults(np.full(self._layout.size, DRAWN_TOKEN, np.int32), self._layout)


def record_steps(
    workload: Workload,
    *,
    shapes: list[StepShape],
    limits: RowLimits,
    scheduler: SchedulerConfig,
    max_blocks_per_seq: int,
) -> list[RecordedStep]:
    """Every step of the workload from its first prompt to its last token."""
    recorder = Recorder(limits.max_logprobs)
    plans: list[StepPlan] = []
    engine = Engine(
        executor=recorder,
        scheduler=Scheduler(scheduler),
        packer=StepPacker(
            shapes, max_num_seqs=limits.max_num_seqs, max_blocks_per_seq=max_blocks_per_seq
        ),
        limits=limits,
        observers=[PlanWatcher(plans.append)],
    )
    for request in workload.requests:
        params = SamplingParams(temperature=0.0, max_tokens=request.max_tokens, ignore_eos=True)
        engine.submit(request.prompt_token_ids, params)
    seconds: list[float] = []
    while engine.has_work:
        num_launched = len(recorder.launched)
        start = time.perf_counter()
        engine.step()
        if len(recorder.launched) > num_launched:
            seconds.append(time.perf_counter() - start)
    launched_plans = [plan for plan in plans if not plan.is_empty]
    return [
        RecordedStep(
            shape=shape,
            packed=packed,
            rows=rows,
            num_tokens=plan.num_tokens,
            num_decode_tokens=plan.num_decode_tokens,
            host_seconds=one,
        )
        for (shape, packed, rows), plan, one in zip(
            recorder.launched, launched_plans, seconds, strict=True
        )
    ]


def unpack(step: RecordedStep, max_blocks_per_seq: int) -> dict[str, np.ndarray]:
    """The fields of the step's input vector."""
    layout = InputLayout(step.shape, max_blocks_per_seq)
    return {
        name: step.packed[layout.slices[name]].reshape(shape)
        for name, shape in layout.fields.items()
    }


def token_places(
    fields: dict[str, np.ndarray], num_tokens: int, block_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each token's position, page and slot; padding has position 0 and the null page."""
    positions, pages = np.zeros(num_tokens, np.int32), np.zeros(num_tokens, np.int32)
    for row in range(int(fields["num_rows"])):
        start, count = fields["query_start"][row], fields["query_len"][row]
        own = fields["kv_len"][row] - count + np.arange(count, dtype=np.int32)
        positions[start : start + count] = own
        pages[start : start + count] = fields["block_tables"][row, own // block_size]
    return positions, pages, positions % block_size

"""What the host spends per step beside the device: scheduling, packing, reading.

The engine decodes ``rows`` requests of one token each per step over an executor that does nothing:
its launch returns at once and its results are a vector made beforehand. So a step's time is all
host time. It is taken twice, with an empty queue and with ``queued`` requests waiting for a row.
Four parts are given:

- schedule: ``Scheduler.schedule``, the plan.
- pack: ``StepPacker.pack``, the plan as one vector.
- read: the rest of ``Engine.step``: choosing the shape, counting, ``StepResults``, appending the
  tokens, looking for ends. The executor's own calls are in it (about a microsecond).
- step: ``Engine.step`` as a whole.

Not in it: transfers to and from the device, detokenization (text is made when somebody looks),
admissions (all requests run before the clock starts), and collections of garbage by Python, which
are switched off while the clock runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fastgen_jax.batching import ResultLayout, StepPacker, StepResults, StepShape
from fastgen_jax.engine import Engine
from fastgen_jax.kv.layout import blocks_for
from fastgen_jax.sampling.row_limits import RowLimits
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.scheduling.plan import StepPlan
from fastgen_jax.scheduling.policy import POLICIES, RequestView
from fastgen_jax.scheduling.scheduler import Scheduler, SchedulerConfig
from fastgen_jax.testing import ByteTokenizer

PROMPT_LENGTH = 64
TOKEN_BUDGET = 2048
WARM_UP_STEPS = 20
UNRANKED = "unranked"
RESULT = Path(__file__).parent / "results" / "host_time.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is measured."""

    rows: int
    queued: int
    policy: str
    steps: int
    block_size: int
    max_model_len: int
    logprobs: int | None
    stop: str | None


class ArrivalOrder:
    """A policy without ``rank``, so that the whole queue is its to order."""

    def order(self, candidates: Sequence[RequestView]) -> Sequence[RequestView]:
        """By arrival."""
        return sorted(candidates, key=lambda request: request.arrival_index)

    def choose_victim(self, running: Sequence[RequestView]) -> RequestView:
        """The newest."""
        return max(running, key=lambda request: request.arrival_index)


class NullStep:
    """Results that were there all along."""

    def __init__(self, packed: np.ndarray, layout: ResultLayout) -> None:
        self._packed = packed
        self._layout = layout

    def read(self) -> StepResults:
        """The same tokens every time."""
        return StepResults(self._packed, self._layout)


class NullExecutor:
    """A ``StepExecutor`` that runs nothing."""

    def __init__(self, shapes: list[StepShape], max_logprobs: int) -> None:
        self._steps: dict[StepShape, NullStep] = {}
        for shape in shapes:
            layout = ResultLayout(shape, max_logprobs)
            self._steps[shape] = NullStep(np.full(layout.size, ord("a"), np.int32), layout)

    def write_row(self, row: int, packed: np.ndarray) -> None:
        """Nothing."""

    def launch(self, shape: StepShape, packed: np.ndarray) -> NullStep:
        """The shape's one step."""
        return self._steps[shape]

    def close(self) -> None:
        """Nothing."""


class TimedScheduler(Scheduler):
    """A scheduler that keeps its times, in seconds."""

    seconds: list[float]

    def schedule(self, *, max_chained_steps: int | None = None) -> StepPlan:
        """The plan, timed."""
        start = time.perf_counter()
        plan = super().schedule(max_chained_steps=max_chained_steps)
        self.seconds.append(time.perf_counter() - start)
        return plan


class TimedPacker(StepPacker):
    """A packer that keeps its times, in seconds."""

    seconds: list[float]

    def pack(self, plan: StepPlan, shape: StepShape) -> np.ndarray:
        """The packed plan, timed."""
        start = time.perf_counter()
        packed = super().pack(plan, shape)
        self.seconds.append(time.perf_counter() - start)
        return packed


def measure(settings: Settings) -> dict[str, np.ndarray]:
    """Seconds of every step, per part."""
    engine, scheduler, packer = build(settings)
    submit(engine, settings, settings.rows)
    while scheduler.num_waiting:
        engine.step()
    submit(engine, settings, settings.queued)
    for _ in range(WARM_UP_STEPS):
        engine.step()
    scheduler.seconds.clear()
    packer.seconds.clear()
    steps = np.zeros(settings.steps)
    gc.collect()
    gc.disable()
    for index in range(settings.steps):
        start = time.perf_counter()
        engine.step()
        steps[index] = time.perf_counter() - start
    gc.enable()
    assert scheduler.num_running == settings.rows, "requests ended while the clock ran"
    assert scheduler.num_waiting == settings.queued, "requests were admitted while the clock ran"
    schedule, pack = np.array(scheduler.seconds), np.array(packer.seconds)
    return {"schedule": schedule, "pack": pack, "read": steps - schedule - pack, "step": steps}


def build(settings: Settings) -> tuple[Engine, TimedScheduler, TimedPacker]:
    """An engine over the null executor, with the two parts that time themselves."""
    rows, tokenizer = settings.rows, ByteTokenizer()
    shapes = [StepShape(rows, rows), StepShape(max(TOKEN_BUDGET, rows), rows)]
    limits = RowLimits(
        max_num_seqs=rows,
        max_model_len=settings.max_model_len,
        vocab_size=tokenizer.vocab_size,
    )
    max_blocks_per_seq = blocks_for(settings.max_model_len, settings.block_size)
    scheduler = TimedScheduler(
        SchedulerConfig(
            token_budget=shapes[-1].num_tokens,
            max_num_seqs=rows,
            max_step_rows=rows,
            max_model_len=settings.max_model_len,
            block_size=settings.block_size,
            num_blocks=rows * max_blocks_per_seq + 1,
        ),
        ArrivalOrder() if settings.policy == UNRANKED else settings.policy,
    )
    packer = TimedPacker(shapes, max_num_seqs=rows, max_blocks_per_seq=max_blocks_per_seq)
    scheduler.seconds, packer.seconds = [], []
    engine = Engine(
        executor=NullExecutor(shapes, limits.max_logprobs),
        scheduler=scheduler,
        packer=packer,
        limits=limits,
        tokenizer=tokenizer,
        eos_token_ids=tokenizer.eos_token_ids,
    )
    return engine, scheduler, packer


def submit(engine: Engine, settings: Settings, count: int) -> None:
    """So many requests with different prompts, that outlast the measurement."""
    params = SamplingParams(max_tokens=None, logprobs=settings.logprobs, stop=settings.stop)
    for number in range(count):
        prompt = [number % 256, number // 256] + [1] * (PROMPT_LENGTH - 2)
        engine.submit(prompt, params, priority=number % 3)


def report(settings: Settings) -> dict[str, object]:
    """The times in milliseconds without and with a queue, and the machine they were taken on."""
    empty = replace(settings, queued=0)
    return {
        "settings": asdict(settings),
        "milliseconds": {
            f"{given.queued} queued": in_milliseconds(measure(given)) for given in (empty, settings)
        },
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "load_average": [round(load, 2) for load in os.getloadavg()],
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
    }


def in_milliseconds(times: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Median and 99th percentile of each part."""
    return {
        part: {
            "median": round(float(np.median(seconds)) * 1e3, 4),
            "p99": round(float(np.percentile(seconds, 99)) * 1e3, 4),
        }
        for part, seconds in times.items()
    }


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def parse() -> tuple[Settings, Path]:
    """The settings, and where the result goes."""
    parser = argparse.ArgumentParser(description="Host time per step, without a device.")
    parser.add_argument("--rows", type=int, default=256, help="running requests")
    parser.add_argument("--queued", type=int, default=10_000, help="requests waiting for a row")
    parser.add_argument(
        "--policy",
        choices=[*POLICIES, UNRANKED],
        default="fcfs",
        help=f"scheduling policy; {UNRANKED} is one that has no rank",
    )
    parser.add_argument("--steps", type=int, default=400, help="steps to time")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--logprobs", type=int, help="alternatives per token; default: none")
    parser.add_argument("--stop", help="a stop string, so that text is made every step")
    parser.add_argument("--json", type=Path, default=RESULT, help="where the result goes")
    given = parser.parse_args()
    room = given.max_model_len - PROMPT_LENGTH - WARM_UP_STEPS - 2 * given.rows
    if given.steps > room:
        parser.error(f"--steps {given.steps} outlasts the requests; at most {room}")
    settings = Settings(
        rows=given.rows,
        queued=given.queued,
        policy=given.policy,
        steps=given.steps,
        block_size=given.block_size,
        max_model_len=given.max_model_len,
        logprobs=given.logprobs,
        stop=given.stop,
    )
    return settings, given.json


def main() -> None:
    """Measure, print a line per part, and write the result."""
    settings, path = parse()
    found = report(settings)
    milliseconds = found["milliseconds"]
    assert isinstance(milliseconds, dict)
    print(f"host time per step at {settings.rows} running requests, milliseconds")
    for name, parts in milliseconds.items():
        for part, times in parts.items():
            print(f"{name:>14} {part:>9}  median {times['median']:7.3f}  p99 {times['p99']:7.3f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

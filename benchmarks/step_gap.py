"""How long the device has nothing to do between two steps, as a share of a step.

Requests decode in a real engine, all rows taken, while jax's profiler records when XLA's execution
threads run a program; ``execution_trace`` says how that is read. A launch may chain several decode
steps; the gap is that between launches. Recording slows the steps a little, so the gap is also
related to launches timed without it, which is the share that gets quoted.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.engine_turns import note
from benchmarks.execution_trace import executions, gaps, recorded_trace
from benchmarks.measurement import write_measurement
from benchmarks.workload import Mix, draw_workload
from fastgen_jax.bench.machine import load_average
from fastgen_jax.bench.spread import Spread
from fastgen_jax.config import EngineConfig
from fastgen_jax.engine import Engine
from fastgen_jax.loaded_model import load_model
from fastgen_jax.sampling_params import SamplingParams

MOST_CHAINED = 8  # room in every request for launches of so many steps


@dataclass(frozen=True, slots=True, kw_only=True)
class StepGap:
    """Traces steady decodes, prints the gap, and writes every number."""

    model: str = "smollm2-135m-instruct"
    """A built-in name, a directory, a .gguf file or a Hub id."""
    dtype: str = "bfloat16"
    """"float32" or "bfloat16"."""
    rows: int = 32
    """Requests that decode."""
    context: int = 128
    """Tokens of their prompts."""
    launches: int = 30
    """Launches traced, and as many timed without a trace, in each pass."""
    passes: int = 3
    """How often both are done, in turns."""
    quick: bool = False
    """4 requests, 1 pass of 8 launches: does it work at all?"""
    out: Path = Path("benchmarks/results/step_gap.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Measure, print, write."""
        options = self
        if self.quick:
            options = replace(self, rows=4, context=16, launches=8, passes=1)
        load_at_start = load_average()
        num_launches = 2 * options.passes * (options.launches + 2) + options.context
        outputs = num_launches * MOST_CHAINED
        config = EngineConfig(
            dtype=self.dtype,
            max_num_seqs=options.rows,
            max_model_len=options.context + outputs,
            enable_prefix_caching=False,
            show_progress=False,
        )
        untraced: list[float] = []
        busy: list[float] = []
        idle: list[float] = []
        loaded = load_model(self.model, config)
        try:
            engine = loaded.engine
            fill(engine, options.rows, options.context, outputs)
            before = engine.metrics()
            for number in range(options.passes):
                untraced += step_seconds(engine, options.launches)
                with recorded_trace() as trace:
                    step_seconds(engine, options.launches)
                spans = executions(trace.events)
                busy += [1e-9 * (span.end - span.start) for span in spans]
                idle += [1e-9 * gap for gap in gaps(spans)]
                note(f"pass {number + 1}: {len(spans)} traced launches")
                if len(spans) < 2:
                    raise RuntimeError("the trace shows no programs on XLA's execution threads")
            after = engine.metrics()
        finally:
            loaded.close()
        num_steps = after.num_steps - before.num_steps
        numbers = gap_numbers(
            untraced=untraced,
            busy=busy,
            idle=idle,
            steps_per_launch=num_steps / (2 * options.passes * options.launches),
        )
        print(
            f"gap {1e3 * numbers['gap_seconds']['median']:.3f} ms between launches of "
            f"{1e3 * numbers['launch_seconds']['median']:.1f} ms: "
            f"{numbers['gap_share']:.2%}, {numbers['gap_share_of_step']:.2%} of a step, in the "
            f"traced run {numbers['gap_share_of_traced_time']:.2%}"
        )
        names = ("dtype", "rows", "context", "launches", "passes", "quick")
        write_measurement(
            self.out,
            settings={name: getattr(options, name) for name in names},
            load_at_start=load_at_start,
            numbers=numbers,
        )


def fill(engine: Engine, rows: int, context: int, outputs: int) -> None:
    """Submit the requests, and step until each of them has drawn its first token."""
    mix = Mix(num_requests=rows, prompt_mean=context, relative_deviation=0.0)
    for request in draw_workload(mix).requests:
        params = SamplingParams(temperature=0.0, max_tokens=outputs, ignore_eos=True)
        engine.submit(request.prompt_token_ids, params)
    decoding: set[int] = set()
    while len(decoding) < rows:
        decoding.update(id(completion) for completion in engine.step())


def step_seconds(engine: Engine, count: int) -> list[float]:
    """Seconds of so many steps of the engine: each plans and launches one, and reads another."""
    seconds: list[float] = []
    for _ in range(count):
        start = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def gap_numbers(
    *, untraced: list[float], busy: list[float], idle: list[float], steps_per_launch: float
) -> dict[str, Any]:
    """Spreads of launches and gaps in seconds, and the gap as a share.

    "gap_share" is the median gap over the median launch without a trace; "gap_share_of_step" is it
    over one step of that launch. The last share is all gaps over all of the traced time, so that a
    few long ones count in full.
    """
    gap, launch = Spread.of(idle), Spread.of(untraced)
    return {
        "steps_per_launch": steps_per_launch,
        "launch_seconds": asdict(launch),
        "traced_busy_seconds": asdict(Spread.of(busy)),
        "gap_seconds": asdict(gap),
        "gap_share": gap.median / launch.median,
        "gap_share_of_step": gap.median / launch.median * steps_per_launch,
        "gap_share_of_traced_time": sum(idle) / (sum(idle) + sum(busy)),
    }


if __name__ == "__main__":
    tyro.cli(StepGap, description=__doc__).main()

"""The compiled steps of large models taken apart: the table of ``docs/plan.md``.

    python -m benchmarks.plan_table [--only llama-3.1-8b:1 mixtral-8x7b:2x4] [--json FILE]

Compiles every step for H100s that needn't be there, a quarter of an hour on two cores. What it
prints are facts of the compiled programs, but for the estimated times.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastgen_jax.bench.machine import machine_facts
from fastgen_jax.plan import Plan, plan
from fastgen_jax.plan.report import StepPlanned

# Model, tensor and expert sizes, and the tokens of each of 256 running requests: what fits.
CASES = (
    ("llama-3.1-8b", 1, 1, 1024),
    ("llama-3.1-8b", 8, 1, 8192),
    ("llama-2-70b", 4, 1, 1024),
    ("llama-2-70b", 8, 1, 4096),
    ("llama-3.1-70b", 8, 1, 4096),
    ("mixtral-8x7b", 8, 1, 4096),
    ("mixtral-8x7b", 2, 4, 4096),
    ("qwen3-30b-a3b", 1, 8, 4096),
)
STEP_SHAPES = ((256, 256), (768, 256), (2048, 256))
RESULT = Path(__file__).parent / "results" / "plan_table.json"


def main() -> None:
    """Plan every case, print the table, and write the plans as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [_name(model, tp, ep) for model, tp, ep, _ in CASES]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--budgets", type=int, nargs="+", help="only steps of so many tokens")
    parser.add_argument("--json", type=Path, default=RESULT, help="where the plans go")
    given = parser.parse_args()
    console = Console(stderr=True)
    plans = []
    shapes = [s for s in STEP_SHAPES if given.budgets is None or s[0] in given.budgets]
    for model, tp, ep, context in CASES:
        name = _name(model, tp, ep)
        if name not in given.only:
            continue
        plans.append(
            plan(
                model,
                gpu="h100",
                tp=tp,
                ep=ep,
                context=context,
                step_shapes=shapes,
                on_progress=lambda words, name=name: console.print(name, words),
            )
        )
        found = {"machine": asdict(machine_facts()), "plans": [_without_launches(p) for p in plans]}
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    Console(width=200).print(table(plans))


def table(plans: list[Plan]) -> Table:
    """A row for each compiled step."""
    columns = (
        ("model", "left"),
        ("step", "left"),
        ("temporary / needed, MiB", "right"),
        ("copies of weights, KV", "right"),
        ("graphs; outside", "right"),
        ("all-reduces", "right"),
        ("collectives, MB", "right"),
        ("of the time", "right"),
        ("bytes / least", "right"),
        ("FLOPs / least", "right"),
        ("padding, TFLOP", "right"),
        ("compiled in, s", "right"),
    )
    made = Table(title="Compiled for H100")
    for name, side in columns:
        made.add_column(name, justify="right" if side == "right" else "left")
    for one in plans:
        for step in one.steps:
            name = _name(one.model, one.tensor_parallel_size, one.expert_parallel_size)
            name += f", context {one.context:,}"
            made.add_row(name, *_cells(step))
    return made


def _name(model: str, tp: int, ep: int) -> str:
    return f"{model}:{tp}" + (f"x{ep}" if ep > 1 else "")


def _without_launches(made: Plan) -> dict[str, Any]:
    """The plan as JSON data, without its thousands of single launches."""
    data = json.loads(made.to_json())
    for step in data["steps"]:
        del step["estimate"]["costs"]
    return data


def _cells(step: StepPlanned) -> list[str]:
    found, estimate = step.compiled, step.estimate
    temporary, needed = found.temp_bytes, found.needed_temp_bytes
    reduces = sum(count for name, count, _ in found.collectives if name == "all-reduce")
    return [
        step.name,
        f"{temporary / 2**20:,.0f} / {needed / 2**20:,.0f} = {temporary / needed:.2f}",
        f"{found.weight_copies}, {found.kv_copies}",
        f"{found.graphs.num_graphs}; {found.graphs.num_outside}",
        str(reduces),
        f"{sum(size for _, _, size in found.collectives) / 1e6:,.1f}",
        f"{dict(estimate.seconds_by_kind).get('collective', 0.0) / estimate.seconds:.0%}",
        f"{estimate.bytes_over_least:.3f}",
        f"{estimate.flops_over_least:.3f}",
        f"{estimate.padding_flops / 1e12:.3f}",
        f"{found.compile_seconds:.0f}",
    ]


if __name__ == "__main__":
    main()

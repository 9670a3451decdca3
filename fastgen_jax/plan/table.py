"""A plan printed for a terminal."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fastgen_jax.plan.report import Plan, StepPlanned

_BAR_WIDTH = 40


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """The plan on the console, standard output by default."""
    console = console or Console()
    console.print(
        f"[bold]{plan.model}[/bold]  {plan.num_parameters / 1e9:.2f} B parameters, {plan.dtype}, "
        f"{plan.gpus}, {plan.context:,} tokens of context"
    )
    console.print(_memory(plan))
    console.print(_compiled(plan))
    console.print(_estimates(plan))
    for step in plan.steps:
        console.print(_contributors(step))


def _memory(plan: Plan) -> RenderableType:
    memory = plan.memory
    table = _table("Memory of each GPU", "", "GiB", "")
    rows = memory.kv_tokens // plan.context
    lines = [
        ("weights", memory.weights, ""),
        ("row state", memory.row_state, ""),
        ("step (temporary)", memory.step, "the compiler's own analysis"),
        ("reserved", memory.reserved, "CUDA and libraries, assumed"),
        (
            "KV cache",
            memory.kv_cache,
            f"{memory.kv_tokens:,} tokens, {rows:,} requests of {plan.context:,}",
        ),
        ("GPU", memory.total, ""),
    ]
    for name, size, note in lines:
        table.add_row(name, f"{size / 2**30:.2f}", note)
    return table


def _compiled(plan: Plan) -> RenderableType:
    table = _table("Compiled steps (facts)", "", *(_title(step) for step in plan.steps))
    facts = [step.compiled for step in plan.steps]
    table.add_row(
        "temporary / needed, MiB",
        *(f"{f.temp_bytes / 2**20:,.0f} / {f.needed_temp_bytes / 2**20:,.0f}" for f in facts),
    )
    table.add_row(
        "updated in place / to be, GiB",
        *(f"{f.aliased_bytes / 2**30:.2f} / {f.donated_bytes / 2**30:.2f}" for f in facts),
    )
    table.add_row("kernels of a greedy step", *(f"{f.num_kernels:,}" for f in facts))
    table.add_row(
        "CUDA graphs; launches outside",
        *(f"{f.graphs.num_graphs}; {f.graphs.num_outside}" for f in facts),
    )
    table.add_row(
        "copies of weights, of KV pools", *(f"{f.weight_copies}, {f.kv_copies}" for f in facts)
    )
    names = dict.fromkeys(name for f in facts for name, _, _ in f.collectives)
    for name in names:
        table.add_row(f"{name}: number, MB", *(_collective(step, name) for step in plan.steps))
    for kernel in dict.fromkeys(item.name for f in facts for item in f.kernels):
        table.add_row(
            f"{kernel.removesuffix('_mosaic_gpu_kernel')}: registers, spilled, shared KiB",
            *(_registers(step, kernel) for step in plan.steps),
        )
    table.add_row(
        "attention", *("a kernel" if f.has_attention_kernel else "XLA loops" for f in facts)
    )
    table.add_row("compile time, s", *(f"{f.compile_seconds:.0f}" for f in facts))
    return table


def _collective(step: StepPlanned, name: str) -> str:
    for found, count, size in step.compiled.collectives:
        if found == name:
            return f"{count}, {size / 1e6:,.1f}"
    return "0"


def _registers(step: StepPlanned, name: str) -> str:
    for kernel in step.compiled.kernels:
        if kernel.name == name:
            shared = "–" if kernel.shared is None else f"{kernel.shared / 2**10:.0f}"
            return f"{kernel.registers}, {kernel.spilled}, {shared}"
    return "–"


def _estimates(plan: Plan) -> RenderableType:
    table = _table(
        "Estimate per step (nothing was run)", "", *(_title(step) for step in plan.steps)
    )
    found = [step.estimate for step in plan.steps]
    table.add_row(
        "load",
        *(f"{e.load.num_decodes} decodes + chunk of {e.load.chunk}" for e in found),
    )
    table.add_row("time, ms", *(f"[bold]{e.seconds * 1e3:.2f}[/bold]" for e in found))
    table.add_row("floor of data sheet, ms", *(f"{e.floor_seconds * 1e3:.2f}" for e in found))
    table.add_row("tokens per second", *(f"{e.tokens_per_second:,.0f}" for e in found))
    table.add_row(
        "GB moved / least",
        *(
            f"{e.num_bytes / 1e9:.2f} / {e.least.num_bytes / 1e9:.2f} = {e.bytes_over_least:.2f}"
            for e in found
        ),
    )
    table.add_row(
        "TFLOP without padding / least",
        *(
            f"{(e.flops - e.padding_flops) / 1e12:.3f} / {e.least.flops / 1e12:.3f} "
            f"= {e.flops_over_least:.2f}"
            for e in found
        ),
    )
    table.add_row("TFLOP of padding", *(f"{e.padding_flops / 1e12:.3f}" for e in found))
    table.add_row(
        "time bound by",
        *(
            ", ".join(f"{name} {seconds / e.seconds:.0%}" for name, seconds in e.seconds_by_bound)
            for e in found
        ),
    )
    return table


def _contributors(step: StepPlanned, most: int = 10) -> RenderableType:
    estimate = step.estimate
    title = Text(f"\nWhere the time goes, estimate: {_title(step)}", style="bold")
    bars = Table(box=None, show_header=False, padding=(0, 1))
    longest = max(seconds for _, seconds in estimate.seconds_by_kind)
    for kind, seconds in estimate.seconds_by_kind:
        bar = "█" * max(1, round(_BAR_WIDTH * seconds / longest))
        bars.add_row(kind, f"{seconds * 1e3:8.3f} ms", f"{seconds / estimate.seconds:4.0%}", bar)
    table = _table("", "largest", "runs", "ms", "bound by", "shape")
    for cost in estimate.costs[:most]:
        launch = cost.launch
        table.add_row(
            f"{launch.kind}: {launch.name}",
            str(launch.count),
            f"{cost.seconds * 1e3:.3f}",
            cost.bound,
            launch.shape,
        )
    return Group(title, bars, table)


def _title(step: StepPlanned) -> str:
    return f"{step.name}, {step.num_tokens} x {step.num_rows}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title or None, title_justify="left", title_style="bold", box=None)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table

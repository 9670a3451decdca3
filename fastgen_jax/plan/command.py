"""What ``fastgen plan`` does: a plan with its progress on standard error, printed or written."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fastgen_jax.errors import ConfigError
from fastgen_jax.plan.chart import check_plot, plot_plan
from fastgen_jax.plan.planner import plan
from fastgen_jax.plan.table import print_plan


def run_plan(
    model: str,
    *,
    gpu: str,
    tp: int,
    ep: int,
    context: int | None,
    dtype: str,
    max_num_seqs: int,
    token_budget: int,
    json: str | None,
    plot: str | None,
) -> None:
    """Make the plan and show it: tables on standard output, or JSON and a chart where asked for.

    Raises:
        ConfigError: a setting or a file's name can't be; raised before anything is compiled.
    """
    if plot is not None:
        check_plot(Path(plot))
    for name, path in (("json", json), ("plot", plot)):
        if path not in (None, "-") and not Path(path).resolve().parent.is_dir():
            raise ConfigError(
                "there is no such directory", field=name, value=path, remedy="make it first"
            )
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("checking sizes", total=None)

        def on_progress(words: str) -> None:
            progress.update(task, description=words)
            if not console.is_terminal:
                console.print(words)

        made = plan(
            model,
            gpu=gpu,
            tp=tp,
            ep=ep,
            context=context,
            dtype=dtype,
            max_num_seqs=max_num_seqs,
            token_budget=token_budget,
            on_progress=on_progress,
        )
    if json == "-":
        print(made.to_json())
    else:
        print_plan(made)
    if json not in (None, "-"):
        Path(json).write_text(made.to_json() + "\n", encoding="utf-8")
    if plot is not None:
        plot_plan(made, plot)

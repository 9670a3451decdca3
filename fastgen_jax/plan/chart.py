"""A bar chart of where each step's time goes."""

from __future__ import annotations

from pathlib import Path

from fastgen_jax.errors import ConfigError
from fastgen_jax.plan.report import Plan


def check_plot(path: Path) -> None:
    """Nothing, where a chart can be written to the path.

    Raises:
        ConfigError: matplotlib is missing, or the ending isn't that of a picture.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError(
            "isn't a picture's name", field="plot", value=str(path), remedy="use .png, .svg or .pdf"
        )
    try:
        import matplotlib as _  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "charts need matplotlib, which isn't installed",
            field="plot",
            value=str(path),
            remedy='pip install "fastgen-jax[plan]", or leave --plot out',
        ) from error


def plot_plan(plan: Plan, path: str | Path) -> None:
    """A stacked bar for each step: the estimated milliseconds of each kind of kernel.

    Raises:
        ConfigError: matplotlib is missing, or the ending isn't that of a picture.
    """
    path = Path(path)
    check_plot(path)
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(9, 1.6 + 0.8 * len(plan.steps)), layout="constrained")
    axes = figure.subplots()
    kinds = dict.fromkeys(k for step in plan.steps for k, _ in step.estimate.seconds_by_kind)
    titles = [f"{s.name}\n{s.num_tokens} tokens" for s in plan.steps]
    left = [0.0] * len(plan.steps)
    for kind in kinds:
        widths = [1e3 * dict(s.estimate.seconds_by_kind).get(kind, 0.0) for s in plan.steps]
        axes.barh(titles, widths, left=left, label=kind)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("estimated milliseconds of a step")
    axes.set_title(f"{plan.model} on {plan.gpus} (estimate)")
    axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.35), frameon=False)
    figure.savefig(path)

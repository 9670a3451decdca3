"""What all plots share: figures without a display, colours, files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgen_jax.bench.results import BenchResults
from fastgen_jax.bench.rounds import Rounds, group_rounds
from fastgen_jax.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vP*X"
_LINES = ("-", "--", "-.", ":")


def check_matplotlib() -> None:
    """Nothing, where plots can be drawn.

    Raises:
        ConfigError: matplotlib isn't installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "needs matplotlib, which isn't installed",
            field="plot",
            value=True,
            remedy='pip install "fastgen-jax[bench]"',
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one file and one setting, in the order in which they were measured.

    Attributes:
        label: what the legend calls it.
        number: among the series of a plot, for its colour.
        groups: its points, each with all its rounds.
    """

    label: str
    number: int
    groups: tuple[Rounds, ...]

    @property
    def style(self) -> dict[str, Any]:
        """Its colour, marker and line."""
        return {
            "color": f"C{self.number % 10}",
            "marker": _MARKERS[self.number % len(_MARKERS)],
            "linestyle": _LINES[self.number // 10 % len(_LINES)],
        }


def series_of(results: Sequence[BenchResults]) -> list[Series]:
    """One for each file and each setting in it, such as a policy."""
    found: dict[str, list[Rounds]] = {}
    for number, one in enumerate(results):
        twins = [other for other in results[:number] if other.label == one.label]
        name = f"{one.label} ({len(twins) + 1})" if twins else one.label
        for group in group_rounds(one.points):
            label = f"{name}, {group.setting}" if group.setting else name
            found.setdefault(label, []).append(group)
    return [
        Series(label=label, number=number, groups=tuple(groups))
        for number, (label, groups) in enumerate(found.items())
    ]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; no window is opened."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def finish_axes(axes: Axes, *, legend: bool = True) -> None:
    """A grid behind everything, no frame above and to the right, a legend where asked for."""
    axes.grid(True, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")


def save_figure(figure: Figure, directory: Path, name: str) -> list[Path]:
    """The figure's two files, PNG and SVG; the same figure gives the same bytes."""
    from matplotlib import rc_context

    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{name}.png", directory / f"{name}.svg"]
    figure.savefig(paths[0], dpi=150)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(paths[1], metadata={"Date": None})
    return paths

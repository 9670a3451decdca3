"""``fastgen bench plot``: plots of results files, laid over each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from fastgen_jax.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Draw saved results; several files lie over each other in the same plots."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Files that the other commands wrote with --json."""
    labels: tuple[str, ...] = ()
    """What the files are called, one each; by default what they say themselves."""
    out: Path = Path("plots")
    """The directory for the plots."""

    def run(self) -> None:
        """Read, draw, say where."""
        from fastgen_jax.bench.plots.draw import draw_results
        from fastgen_jax.bench.plots.figure import check_matplotlib
        from fastgen_jax.bench.results import load_results

        check_matplotlib()
        if not self.files:
            raise ConfigError("is empty", field="files", value=(), remedy="give at least one")
        if self.labels and len(self.labels) != len(self.files):
            raise ConfigError(
                f"must be as many as the files, {len(self.files)}",
                field="labels",
                value=self.labels,
            )
        results = [load_results(path) for path in self.files]
        if self.labels:
            pairs = zip(results, self.labels, strict=True)
            results = [replace(one, label=label) for one, label in pairs]
        paths = draw_results(results, self.out)
        if not paths:
            raise ConfigError(
                "hold nothing to draw", field="files", value=[str(path) for path in self.files]
            )
        for path in paths:
            print(path)

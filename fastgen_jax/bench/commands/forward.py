"""``fastgen bench forward``: how long a step takes, by the number of its tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

import tyro

from fastgen_jax.bench.commands.options import OutputOptions
from fastgen_jax.config import EngineConfig
from fastgen_jax.engine_options import DEFAULT_MODEL, EngineOptions
from fastgen_jax.errors import ConfigError

if TYPE_CHECKING:
    from fastgen_jax.bench.results import BenchResults

Cell = tuple[int, int]  # tokens, prompts


@dataclass(frozen=True, kw_only=True)
class Forward:
    """Latency and FLOP/s of single steps by their tokens, as in the paper's analysis."""

    model: str = DEFAULT_MODEL
    """A built-in name, a directory, a .gguf file or a Hub id."""
    tokens: tuple[int, ...] = ()
    """Tokens of the steps; by default powers of two and their middles, up to the budget."""
    batch_sizes: tuple[int, ...] = (1,)
    """Prompts that share the tokens; the paper has 1, 2, 4 and 8."""
    repeats: int = 9
    """Times that each step is timed; sizes take turns, so that all see the same moods."""
    exact_shapes: bool = False
    """Compile a step for each number of tokens: the curve without padding, where it costs."""
    engine: tyro.conf.OmitArgPrefixes[EngineOptions] = field(default_factory=EngineOptions)
    output: tyro.conf.OmitArgPrefixes[OutputOptions] = field(default_factory=OutputOptions)

    def run(self) -> None:
        """Measure, print, write, draw."""
        from fastgen_jax.bench.commands.tables import print_results

        self.output.check()
        if self.repeats < 1:
            raise ConfigError("must be at least 1", field="repeats", value=self.repeats)
        for number in (*self.tokens, *self.batch_sizes):
            if number < 1:
                raise ConfigError("must be at least 1", field="tokens, batch_sizes", value=number)
        results = self._measure()
        print_results(results)
        if self.output.json is not None:
            results.save(self.output.json)
        if self.output.plot is not None:
            from fastgen_jax.bench.plots.draw import draw_results

            for path in draw_results([results], self.output.plot):
                print(path)

    def _measure(self) -> BenchResults:
        import jax

        from fastgen_jax.bench.commands.target import engine_settings
        from fastgen_jax.bench.live.step_timer import StepTimer
        from fastgen_jax.bench.machine import load_average, machine_facts
        from fastgen_jax.bench.results import BenchResults

        load = load_average()
        config = self._config()
        timer = StepTimer(self.model, config)
        try:
            cells = self._cells(timer.token_budget, timer.max_rows)
            steps = timer.time(cells, self.repeats)
            description = {
                "kind": "in_process",
                "model": self.model,
                "device": jax.devices()[0].device_kind,
                "num_devices": config.num_devices,
                "settings": engine_settings(config),
            }
        finally:
            timer.close()
        return BenchResults(
            command="forward",
            label=self.output.label or self.model,
            machine=asdict(machine_facts()),
            load_average={"start": load, "end": load_average()},
            target=description,
            options={"repeats": self.repeats, "exact_shapes": self.exact_shapes},
            steps=tuple(steps),
        )

    def _config(self) -> EngineConfig:
        """The engine's settings; nothing may be found in a prefix cache."""
        config = replace(
            self.engine.engine_config(),
            enable_prefix_caching=False,
            show_progress=sys.stderr.isatty(),
        )
        if not self.exact_shapes:
            return config
        if not self.tokens:
            raise ConfigError(
                "needs the numbers of tokens",
                field="exact_shapes",
                value=True,
                remedy="give --tokens as well",
            )
        rows = max(self.batch_sizes)
        shapes = tuple((size, min(size, rows)) for size in sorted(set(self.tokens)))
        return replace(
            config,
            step_shapes=shapes,
            token_budget=None,
            max_num_seqs=rows,
            max_chained_steps=1,  # no request gets as far, and there may be many shapes
        )

    def _cells(self, budget: int, max_rows: int) -> list[Cell]:
        too_large = [size for size in self.tokens if size > budget]
        if too_large:
            raise ConfigError(
                f"exceeds the token budget of {budget}",
                field="tokens",
                value=too_large[0],
                remedy="raise --token-budget",
            )
        sizes = self.tokens or tuple(default_tokens(budget))
        return [
            (size, rows)
            for rows in self.batch_sizes
            for size in sizes
            if rows <= min(size, max_rows)
        ]


def default_tokens(budget: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, … and the budget."""
    size = 1
    while size < budget:
        yield size
        if size > 1 and size + size // 2 < budget:
            yield size + size // 2
        size *= 2
    yield budget

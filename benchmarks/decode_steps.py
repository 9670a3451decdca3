"""Seconds of a decode step by rows and context, beside what the machine needs at the least.

The steps are the engine's own, compiled as a user gets them and launched as the engine launches
them. Two floors stand beside each: reading the weights and the keys and values at the memory's
measured rate, and computing the products at the best rate that a large product reaches here. Both
rates are measured in the same run, before and after.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.decode_floor import DecodeCost, DecodeFloor
from benchmarks.engine_turns import note
from benchmarks.gemm_rate import GemmRate, measure_gemm
from benchmarks.llama_tools import num_threads
from benchmarks.matmul_limit import read_model_config
from benchmarks.measurement import write_measurement
from benchmarks.memory_read import ReadRate, measure_memory_read
from benchmarks.steady_decode import SteadyDecode
from benchmarks.weight_bytes import dense_weight_bytes, gguf_weight_bytes
from fastgen_jax.bench.machine import load_average
from fastgen_jax.bench.spread import Spread
from fastgen_jax.config import EngineConfig
from fastgen_jax.kv.layout import blocks_for
from fastgen_jax.loaded_model import load_model
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.sources import resolve_model

WARM_UP_STEPS = 2

Cell = tuple[int, int]  # rows, context


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeSteps:
    """Times the steps, prints a table, writes every number and, with matplotlib, a plot."""

    model: str = "smollm2-135m-instruct"
    """A built-in name, a directory, a .gguf file or a Hub id."""
    dtype: str = "bfloat16"
    """"float32" or "bfloat16"."""
    quantization: str | None = None
    """"gguf" keeps the weights packed as the file has them; None keeps them in dtype."""
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Requests that decode at once."""
    contexts: tuple[int, ...] = (128, 512, 1024, 2048, 4096)
    """Tokens of each request up to and including the step."""
    exact_shapes: bool = False
    """Compile a step for each number of rows, instead of the engine's own ladder."""
    max_cache_gib: float = 7.0
    """Cells that need a larger cache are left out."""
    passes: int = 3
    """How often the whole table is gone through; the medians are over all passes."""
    steps_per_pass: int = 12
    """Timed steps of a cell in a pass."""
    seconds_per_cell: float = 2.0
    """A cell's pass ends after so long, with at least 2 steps."""
    quick: bool = False
    """2 numbers of rows, 2 short contexts, 1 pass: does it work at all?"""
    plot: Path | None = Path("benchmarks/results/decode_steps.svg")
    """Where the plot goes; None draws none."""
    out: Path = Path("benchmarks/results/decode_steps.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Measure, print, write."""
        options = self
        if self.quick:
            options = replace(self, rows=(1, 4), contexts=(64, 128), passes=1, steps_per_pass=3)
        load_at_start = load_average()
        reads, gemms = [_read(options.quick)], [_gemm(options.quick)]
        cost = options.cost(read_model_config(self.model))
        cells = options.cells(cost)
        config = options.engine_config()
        config = replace(config, num_kv_blocks=cells_blocks(cells, config.block_size))
        loaded = load_model(self.model, config)
        try:
            decode = SteadyDecode(loaded, config)
            seconds = options.time_cells(decode, cells)
            shapes = {rows: list(decode.shape(rows)) for rows in options.rows}
        finally:
            loaded.close()
        reads.append(_read(options.quick))
        gemms.append(_gemm(options.quick))
        read_rate = statistics.median(one.rate for one in reads)
        flop_rate = max(one.rate for one in gemms)
        floors = {
            (rows, context): cost.floor(
                rows=rows, context=context, read_rate=read_rate, flop_rate=flop_rate
            )
            for rows, context in cells
        }
        spreads = {cell: Spread.of(values) for cell, values in seconds.items()}
        entries = cell_entries(spreads, floors)
        print(steps_table(entries))
        write_measurement(
            self.out,
            settings=options.settings(),
            load_at_start=load_at_start,
            numbers={
                "read_rate": read_rate,
                "flop_rate": flop_rate,
                "memory_read": [asdict(one) for one in reads],
                "gemm": [asdict(one) for one in gemms],
                "cost": asdict(cost),
                "shape_of_rows": shapes,
                "cells": entries,
            },
        )
        if self.plot is not None:
            draw(entries, self.plot)

    def engine_config(self) -> EngineConfig:
        """The engine's settings: rows and lengths for the whole table, all else as it comes."""
        most = max(self.rows)
        settings: dict[str, Any] = {
            "dtype": self.dtype,
            "max_num_seqs": most,
            "max_model_len": max(self.contexts) + 1,
            "enable_prefix_caching": False,
            "show_progress": False,
        }
        if self.exact_shapes:
            settings["step_shapes"] = tuple((rows, rows) for rows in sorted(self.rows))
        if self.quantization is not None:
            settings["quantization"] = self.quantization
        return EngineConfig.from_dict(settings)

    def cost(self, model: ModelConfig) -> DecodeCost:
        """Bytes and FLOPs of the model's steps."""
        itemsize = np.dtype("float32").itemsize if self.dtype == "float32" else 2
        weight_bytes = dense_weight_bytes(model, itemsize)
        if self.quantization == "gguf":
            weight_bytes = gguf_weight_bytes(resolve_model(self.model, progress=False))
        elif self.quantization is not None:
            raise SystemExit('--quantization: only "gguf" has known bytes of weights here')
        return DecodeCost.of(model, weight_bytes=weight_bytes, kv_itemsize=itemsize)

    def cells(self, cost: DecodeCost) -> list[Cell]:
        """Rows and context of every step that the allowed cache holds."""
        most = self.max_cache_gib * 2**30
        return [
            (rows, context)
            for rows in self.rows
            for context in self.contexts
            if rows * context * cost.kv_bytes_per_token <= most
        ]

    def time_cells(self, decode: SteadyDecode, cells: Sequence[Cell]) -> dict[Cell, list[float]]:
        """Seconds of the timed steps of every cell, over all passes."""
        seconds: dict[Cell, list[float]] = {cell: [] for cell in cells}
        for number in range(self.passes):
            for rows, context in cells:
                steps = decode.seconds(rows=rows, context=context)
                for _ in islice(steps, WARM_UP_STEPS):
                    pass
                end = time.perf_counter() + self.seconds_per_cell
                for count, one in enumerate(islice(steps, self.steps_per_pass), 1):
                    seconds[rows, context].append(one)
                    if count >= 2 and time.perf_counter() > end:
                        break
                steps.close()
            note(f"pass {number + 1} of {self.passes} done")
        return seconds

    def settings(self) -> dict[str, Any]:
        """What was asked for, without places on this machine."""
        names = ("dtype", "quantization", "rows", "contexts", "exact_shapes", "max_cache_gib")
        names += ("passes", "steps_per_pass", "seconds_per_cell", "quick")
        return {name: getattr(self, name) for name in names}


def cells_blocks(cells: Sequence[Cell], block_size: int) -> int:
    """Blocks of a pool that holds the largest cell, the null block included."""
    return max(rows * blocks_for(context, block_size) for rows, context in cells) + 1


def cell_entries(
    seconds: Mapping[Cell, Spread], floors: Mapping[Cell, DecodeFloor]
) -> list[dict[str, Any]]:
    """An entry per cell: its time, both floors, and the time over the larger floor."""
    return [
        {
            "rows": rows,
            "context": context,
            "seconds": asdict(spread),
            "memory_floor": floors[rows, context].memory,
            "matmul_floor": floors[rows, context].matmul,
            "bound": floors[rows, context].bound,
            "times_floor": spread.median / floors[rows, context].seconds,
            "times_in_turn": spread.median / floors[rows, context].in_turn,
        }
        for (rows, context), spread in seconds.items()
    ]


def steps_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """A line per cell, in milliseconds."""
    head = f"{'rows':>5}{'context':>9}{'step ms':>10}{'memory':>9}{'matmul':>9}"
    lines = [f"{head}{'× floor':>9}{'in turn':>9}"]
    for one in entries:
        lines.append(
            f"{one['rows']:5}{one['context']:9}{1e3 * one['seconds']['median']:10.1f}"
            f"{1e3 * one['memory_floor']:9.1f}{1e3 * one['matmul_floor']:9.1f}"
            f"{one['times_floor']:9.2f}{one['times_in_turn']:9.2f}"
        )
    return "\n".join(lines)


def draw(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Step time against rows, a line per context, solid as measured and dashed as the floor."""
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError:
        note(f"no plot at {path}: matplotlib isn't installed; it comes with fastgen-jax[plan]")
        return
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, context in enumerate(sorted({one["context"] for one in entries})):
        cells = [one for one in entries if one["context"] == context]
        rows = [one["rows"] for one in cells]
        floor = [1e3 * max(one["memory_floor"], one["matmul_floor"]) for one in cells]
        measured = [1e3 * one["seconds"]["median"] for one in cells]
        axes.plot(rows, measured, color=f"C{index}", marker="o", label=f"context {context}")
        axes.plot(rows, floor, color=f"C{index}", linestyle="--")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({one["rows"] for one in entries}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(xlabel="rows", ylabel="milliseconds", title="Decode step (dashed: larger floor)")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _read(quick: bool) -> ReadRate:
    size, passes = (64, 3) if quick else (1024, 25)
    return measure_memory_read(threads=num_threads(), mebibytes=size, passes=passes)


def _gemm(quick: bool) -> GemmRate:
    return measure_gemm(size=256 if quick else 2048, repeats=3 if quick else 7)


if __name__ == "__main__":
    tyro.cli(DecodeSteps, description=__doc__).main()

"""How a model's decode steps and its prefill get faster over more devices.

Each mesh of the tensor and expert sizes is an engine of its own, started and ended one after the
other, since together they would not fit. Decode steps are the engine's own, compiled for exactly
the rows that are asked for, and launched as the engine launches them; prefill is the engine at work
on prompts of which it generates one token each.

    python -m benchmarks.tensor_parallel --model org/name --sizes 1 2 4 8
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from tqdm import tqdm

from benchmarks.decode_steps import Cell, cells_blocks
from benchmarks.engine_turns import note
from benchmarks.matmul_limit import read_model_config
from benchmarks.measurement import write_measurement
from benchmarks.scaling import (
    MeshSize,
    draw_scaling,
    fitting_meshes,
    scaling_entries,
    scaling_table,
)
from benchmarks.steady_decode import SteadyDecode
from fastgen_jax import SamplingParams
from fastgen_jax.bench.machine import load_average
from fastgen_jax.bench.spread import Spread
from fastgen_jax.config import EngineConfig
from fastgen_jax.errors import ConfigError, FastGenError
from fastgen_jax.kv.layout import blocks_for
from fastgen_jax.loaded_model import LoadedModel, load_model
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.plan.memory import weight_bytes
from fastgen_jax.runtime.memory import available_bytes

WARM_UP_STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorParallel:
    """Times every mesh, prints a table, writes every number and, with matplotlib, a plot."""

    model: str = "smollm2-135m-instruct"
    """A built-in name, a directory, a .gguf file or a Hub id."""
    sizes: tuple[int, ...] | None = None
    """Tensor-parallel sizes; None tries every power of two that fits."""
    expert_sizes: tuple[int, ...] = (1,)
    """Expert-parallel sizes, each tried with every tensor-parallel size."""
    rows: tuple[int, ...] = (1, 16, 64)
    """Requests that decode at once."""
    contexts: tuple[int, ...] = (512, 2048)
    """Tokens of each request up to and including the step."""
    prompts: int = 8
    """Prompts of a prefill; 0 measures none."""
    prompt_tokens: int = 1024
    """Tokens of each of them."""
    token_budget: int = 512
    """Tokens of the step that prefills; with no more than there are rows, decode steps do it."""
    dtype: str = "auto"
    """"float32" or "bfloat16"; auto takes the device's."""
    load_format: str = "auto"
    """"dummy" takes random weights."""
    implementation: str | None = None
    """As in EngineConfig; None takes auto, but xla on a CPU, where one device has more kernels."""
    passes: int = 3
    """How often all cells of a mesh are gone through; the medians are over all passes."""
    steps_per_pass: int = 20
    """Timed steps of a cell in a pass."""
    cpu_devices: int | None = None
    """Virtual devices of a CPU, to try the script out; they share its cores: no gain."""
    compilation_cache_dir: str | None = None
    """As in EngineConfig."""
    quick: bool = False
    """1 pass of a few steps and short prompts: does it work at all?"""
    plot: Path | None = Path("benchmarks/results/tensor_parallel.svg")
    """Where the plot goes; None draws none."""
    out: Path = Path("benchmarks/results/tensor_parallel.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Measure, print, write.

        Raises:
            ConfigError: a size that was asked for doesn't fit the model or the machine.
        """
        options = self
        if self.quick:
            options = replace(self, rows=(1, 4), contexts=(32, 64), passes=1, steps_per_pass=3)
            options = replace(options, prompts=2, prompt_tokens=48, token_budget=32)
        if self.cpu_devices is not None:
            jax.config.update("jax_num_cpu_devices", self.cpu_devices)
        load_at_start = load_average()
        model = read_model_config(self.model)
        devices = jax.devices()
        meshes = fitting_meshes(
            model,
            tensor_sizes=self.sizes,
            expert_sizes=self.expert_sizes,
            num_devices=len(devices),
        )
        cells, starts, left_out = options.measure(model, meshes)
        entries = scaling_entries(cells)
        print(scaling_table(entries))
        write_measurement(
            self.out,
            settings=options.settings(),
            load_at_start=load_at_start,
            numbers={
                "devices": {"kind": devices[0].device_kind, "count": len(devices)},
                "starts": starts,
                "left_out": left_out,
                "cells": entries,
            },
        )
        if self.plot is not None and entries:
            title = f"{model.architecture}, {len(devices)} x {devices[0].device_kind}"
            draw_scaling(entries, self.plot, title=title)

    def measure(
        self, model: ModelConfig, meshes: Sequence[MeshSize]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
        """The cells of all meshes, how each started, and the meshes that didn't fit the memory."""
        cells: list[dict[str, Any]] = []
        starts: list[dict[str, Any]] = []
        left_out: list[dict[str, Any]] = []
        per_mesh = self.passes * (len(self.rows) * len(self.contexts) + (self.prompts > 0))
        with tqdm(total=len(meshes) * per_mesh, unit="cell", dynamic_ncols=True) as bar:
            for mesh in meshes:
                bar.set_description(f"{mesh}: starting")
                place = {"tensor": mesh.tensor, "expert": mesh.expert, "devices": mesh.devices}
                config = self.engine_config(mesh)
                try:
                    self.check_memory(model, mesh, config)
                    loaded = load_model(self.model, config)
                except ConfigError as error:
                    # The sizes divide, so what is left are the memory and the lengths.
                    note(f"left out {mesh}: {error}")
                    left_out.append({**place, "reason": str(error)})
                    bar.update(per_mesh)
                    continue
                try:
                    bar.set_description(str(mesh))
                    starts.append({**place, "seconds": loaded.startup.total_seconds})
                    cells += [{**place, **cell} for cell in self.time_mesh(loaded, config, bar)]
                finally:
                    loaded.close()
                    del loaded
                    gc.collect()  # the next mesh needs the memory now
        if not cells:
            reasons = "; ".join(one["reason"] for one in left_out)
            raise ConfigError(f"no mesh could be measured: {reasons}", field="model")
        return cells, starts, left_out

    def engine_config(self, mesh: MeshSize) -> EngineConfig:
        """The engine's settings on a mesh: a step for each number of rows, and one to prefill."""
        most = max(self.rows)
        decodes = tuple((rows, rows) for rows in sorted(set(self.rows)))
        prefill = (self.token_budget, most)
        is_cpu = jax.default_backend() == "cpu"
        return EngineConfig(
            dtype=self.dtype,
            max_num_seqs=max(most, self.prompts),
            max_model_len=max(*self.contexts, self.prompt_tokens) + 1,
            step_shapes=decodes if self.token_budget <= most else (*decodes, prefill),
            num_kv_blocks=self.num_blocks(EngineConfig().block_size),
            tensor_parallel_size=mesh.tensor,
            expert_parallel_size=mesh.expert,
            load_format=self.load_format,
            implementation=self.implementation or ("xla" if is_cpu else "auto"),
            enable_prefix_caching=False,
            compilation_cache_dir=self.compilation_cache_dir,
            show_progress=False,
        )

    def num_blocks(self, block_size: int) -> int:
        """Blocks that hold the largest cell and all prompts, the null block included."""
        cells: list[Cell] = [(rows, context) for rows in self.rows for context in self.contexts]
        prompts = self.prompts * blocks_for(self.prompt_tokens + 1, block_size) + 1
        return max(cells_blocks(cells, block_size), prompts)

    def check_memory(self, model: ModelConfig, mesh: MeshSize, config: EngineConfig) -> None:
        """Refuse a mesh whose devices can't hold the weights, before any are read.

        Raises:
            ConfigError: says what a device has and what it would need.
        """
        device = jax.local_devices()[0]
        if device.platform == "cpu":
            return
        dtype = "bfloat16" if config.dtype == "auto" else config.dtype
        needed = weight_bytes(model, dtype=dtype, devices=mesh.devices)
        available = available_bytes(device)
        if needed > available:
            raise ConfigError(
                f"weights take {needed / 2**30:.1f} GiB of each device, which has "
                f"{available / 2**30:.1f}",
                field="tensor_parallel_size",
                value=mesh.tensor,
                remedy="use more devices",
            )

    def time_mesh(
        self, loaded: LoadedModel, config: EngineConfig, bar: tqdm
    ) -> list[dict[str, Any]]:
        """A cell for each number of rows and context, and one for prefill."""
        decode = SteadyDecode(loaded, config)
        steps: dict[Cell, list[float]] = {(r, c): [] for r in self.rows for c in self.contexts}
        prefills: list[float] = []
        if self.prompts:
            self.prefill(loaded, 0)  # the first one warms up
        for number in range(self.passes):
            for (rows, context), seconds in steps.items():
                running = decode.seconds(rows=rows, context=context)
                timed = islice(running, WARM_UP_STEPS, WARM_UP_STEPS + self.steps_per_pass)
                seconds.extend(timed)
                running.close()
                bar.update()
            if self.prompts:
                prefills.append(self.prefill(loaded, 1 + number))
                bar.update()
        found = [_cell(rows, context, rows, times) for (rows, context), times in steps.items()]
        if prefills:
            found.append(_cell(0, 0, self.prompts * self.prompt_tokens, prefills))
        return found

    def prefill(self, loaded: LoadedModel, seed: int) -> float:
        """Seconds from handing the engine all prompts to the first token of the last one."""
        rng = np.random.default_rng(seed)
        shape = (self.prompts, self.prompt_tokens)
        prompts = rng.integers(0, loaded.model.vocab_size, shape).tolist()
        params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
        start = time.perf_counter()
        for prompt in prompts:
            loaded.engine.submit(prompt, params)
        while loaded.engine.has_work:
            loaded.engine.step()
        return time.perf_counter() - start

    def settings(self) -> dict[str, Any]:
        """What was asked for, without places on this machine."""
        names = ("sizes", "expert_sizes", "rows", "contexts", "prompts", "prompt_tokens")
        names += ("token_budget", "dtype", "load_format", "implementation", "passes")
        names += ("steps_per_pass", "cpu_devices", "quick")
        return {name: getattr(self, name) for name in names}


def _cell(rows: int, context: int, tokens: int, seconds: Sequence[float]) -> dict[str, Any]:
    """Numbers of a cell; ``tokens`` are those of one of its times."""
    spread = Spread.of(seconds)
    return {
        "rows": rows,
        "context": context,
        "seconds": asdict(spread),
        "tokens_per_second": tokens / spread.median,
    }


if __name__ == "__main__":
    try:
        tyro.cli(TensorParallel, description=__doc__).main()
    except FastGenError as error:
        raise SystemExit(str(error)) from None

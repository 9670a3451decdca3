"""From a model's shape and weights to a running executor: compile, load, plan memory, allocate."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp

from fastgen_jax.batching import StepShape
from fastgen_jax.config import ResolvedConfig
from fastgen_jax.errors import ConfigError
from fastgen_jax.kv.layout import bytes_per_block
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.decoder import Decoder, Weights
from fastgen_jax.models.packed import PackedWeights
from fastgen_jax.runtime.abstract import AbstractStep, abstract_split, abstract_step_of
from fastgen_jax.runtime.cache import CacheSpec, cache_spec
from fastgen_jax.runtime.compile import (
    BackgroundCompilation,
    CompiledProgram,
    Program,
    compile_programs,
)
from fastgen_jax.runtime.crossover import fastest_linear
from fastgen_jax.runtime.executor import WRITE_ROW, Executor
from fastgen_jax.runtime.kernels import with_kernels
from fastgen_jax.runtime.memory import MemoryPlan, available_bytes, plan_blocks, step_bytes
from fastgen_jax.runtime.program_cache import ProgramCache
from fastgen_jax.runtime.step import SplitModel, StepSpec
from fastgen_jax.runtime.weights import WeightSource, num_bytes
from fastgen_jax.sampling import RowLimits, init_row_state, write_row
from pallas_kernels import AttentionNative, target_of
from pallas_kernels.linear import LinearConfig

ALLOCATE = "allocate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A ready executor and what making it took; times in seconds."""

    executor: Executor
    ready_shapes: tuple[StepShape, ...]
    compilation: BackgroundCompilation
    memory_plan: MemoryPlan
    load_seconds: float

    def compile_rest(self, on_shape: Callable[[StepShape], None]) -> None:
        """Begin to compile what is left; ``on_shape`` hears of each step that can be launched."""
        shapes = {_step_name(shape): shape for shape in self.executor.shapes}

        def on_ready(program: CompiledProgram) -> None:
            self.executor.add_step(shapes[program.name], program)
            on_shape(shapes[program.name])

        self.compilation.start(on_ready)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Whom to tell about long work: a weight was loaded, a program was compiled."""

    on_weight: Callable[[int], None]
    on_program: Callable[[str], None]


def build_runtime(
    model: ModelConfig,
    config: ResolvedConfig,
    limits: RowLimits,
    source: WeightSource,
    *,
    num_kv_blocks: int | None,
    cache_dir: Path | None,
    in_background: bool,
    progress: Progress,
) -> Runtime:
    """An executor with all programs compiled and all memory taken.

    Weights load while the programs compile. The pool's size comes from the compiled programs'
    own memory analysis: a first compilation uses an estimate, which stands unless the analysis
    shows that it doesn't fit. ``in_background`` compiles one step shape now and leaves the others
    to ``Runtime.compile_rest``, unless all are on disk; the estimate then stands for those.

    Raises:
        ConfigError: the memory doesn't hold one request of the longest length.
    """
    device = jax.local_devices()[0]
    unroll_layers = device.platform != "cpu"
    abstract = source.abstract()
    split = abstract_split(model, abstract)
    linear = _fastest_products(abstract, config, cache_dir)
    row_shapes = jax.eval_shape(lambda: init_row_state(limits))
    sizes = _Sizes(
        available=available_bytes(device),
        weights=num_bytes(split.leaves),
        row_state=num_bytes(row_shapes),
        step=_estimate_step_bytes(model, config),
    )
    programs_on_disk = ProgramCache(cache_dir)
    with ThreadPoolExecutor(1, thread_name_prefix="fastgen-load") as pool:
        loading = pool.submit(_load, model, source, progress.on_weight)
        num_blocks = num_kv_blocks or _plan(model, config, sizes)
        while True:
            cache = cache_spec(
                model,
                num_blocks=num_blocks,
                block_size=config.block_size,
                dtype=config.dtype,
                unroll_layers=unroll_layers,
            )
            specs = [
                with_kernels(
                    StepSpec(
                        shape=StepShape(*shape),
                        max_blocks_per_seq=config.max_blocks_per_seq,
                        max_logprobs=limits.max_logprobs,
                        cache=cache,
                        max_chained_steps=config.max_chained_steps,
                        linear=linear.get(shape),
                    ),
                    model,
                    target_of(device),
                    implementation=config.implementation,
                )
                for shape in config.step_shapes
            ]
            wanted = _programs(split, specs, limits)
            is_on_disk = all(programs_on_disk.has(program.key) for program in wanted)
            names = _names_for_later(config) if in_background and not is_on_disk else ()
            later = [program for program in wanted if program.name in names]
            programs, report = compile_programs(
                [p for p in wanted if p.name not in names], programs_on_disk, progress.on_program
            )
            running = (program for name, program in programs.items() if name != ALLOCATE)
            measured = step_bytes(running)
            sizes = replace(sizes, step=max(measured, sizes.step) if later else measured)
            plan = _memory_plan(model, config, sizes, cache)
            if plan.fits:
                break
            if num_kv_blocks is not None:
                raise ConfigError(
                    f"needs more than the memory there is:\n{plan}",
                    field="num_kv_blocks",
                    value=num_kv_blocks,
                    remedy="lower it, or leave it out",
                )
            num_blocks = _plan(model, config, sizes)
        # Zeroing the pool takes seconds on a CPU; started here, it runs beside the loading.
        pages, rows = programs[ALLOCATE]()
        leaves, load_seconds = loading.result()
    executor = Executor(
        leaves=leaves,
        pages=pages,
        rows=rows,
        steps={
            spec.shape: programs[_step_name(spec.shape)]
            for spec in specs
            if _step_name(spec.shape) in programs
        },
        results={spec.shape: spec.results for spec in specs},
        write_row=programs[WRITE_ROW],
    )
    return Runtime(
        executor=executor,
        ready_shapes=executor.ready_shapes,
        compilation=BackgroundCompilation(later, programs_on_disk, report),
        memory_plan=plan,
        load_seconds=load_seconds,
    )


@dataclass(frozen=True, slots=True)
class _Sizes:
    available: int
    weights: int
    row_state: int
    step: int


def _fastest_products(
    weights: Weights, config: ResolvedConfig, cache_dir: Path | None
) -> dict[tuple[int, int], LinearConfig]:
    if not isinstance(weights, PackedWeights):
        return {}
    return {
        shape: fastest_linear(
            weights, shape[0], num_threads=config.num_threads, cache_dir=cache_dir
        )
        for shape in config.step_shapes
    }


def _programs(split: SplitModel, specs: list[StepSpec], limits: RowLimits) -> list[Program]:
    rows = jax.eval_shape(lambda: init_row_state(limits))
    # The largest compiles longest, so it starts first.
    programs = [
        _step_program(spec.shape, abstract_step_of(split, spec, limits)) for spec in reversed(specs)
    ]
    row = Program(
        name=WRITE_ROW,
        function=write_row,
        description=limits,
        arguments={
            "row_state": rows,
            "row": jax.ShapeDtypeStruct((), jnp.int32),
            "packed_row": jax.ShapeDtypeStruct(limits.neutral_row.shape, jnp.int32),
        },
        donated=("row_state",),
    )
    cache, is_native = specs[0].cache, isinstance(specs[0].attention, AttentionNative)
    allocate = Program(
        name=ALLOCATE,
        function=lambda: (cache.zeros(is_native=is_native), init_row_state(limits)),
        description=(cache, is_native, limits),
        arguments={},
    )
    return [*programs, row, allocate]


def _step_program(shape: StepShape, step: AbstractStep) -> Program:
    return Program(
        name=_step_name(shape),
        function=step.function,
        description=step.description,
        arguments=dict(zip(step.argument_names, step.arguments, strict=True)),
        donated=tuple(step.argument_names[index] for index in step.donate_argnums),
    )


def _names_for_later(config: ResolvedConfig) -> list[str]:
    """All steps but the smallest of those with the most rows: it can run whatever comes."""
    most_rows = config.step_shapes[-1][1]
    first = next(shape for shape in config.step_shapes if shape[1] == most_rows)
    return [_step_name(StepShape(*shape)) for shape in config.step_shapes if shape != first]


def _step_name(shape: StepShape) -> str:
    return f"step {shape.num_tokens} x {shape.num_rows}"


def _load(
    model: ModelConfig, source: WeightSource, on_weight: Callable[[int], None]
) -> tuple[tuple[jax.Array, ...], float]:
    start = time.perf_counter()
    leaves = SplitModel.of(Decoder(model, source.load(on_weight))).leaves
    return leaves, time.perf_counter() - start


def _plan(model: ModelConfig, config: ResolvedConfig, sizes: _Sizes) -> int:
    return plan_blocks(
        available=sizes.available,
        weights=sizes.weights,
        row_state=sizes.row_state,
        step=sizes.step,
        fraction=config.kv_cache_memory_fraction,
        bytes_per_block=_bytes_per_block(model, config),
        useful_blocks=config.max_num_seqs * config.max_blocks_per_seq + 1,
        blocks_of_longest=config.max_blocks_per_seq,
    )


def _memory_plan(
    model: ModelConfig, config: ResolvedConfig, sizes: _Sizes, cache: CacheSpec
) -> MemoryPlan:
    return MemoryPlan(
        available=sizes.available,
        weights=sizes.weights,
        row_state=sizes.row_state,
        step=sizes.step,
        kv_cache=cache.num_blocks * _bytes_per_block(model, config),
        num_blocks=cache.num_blocks,
        block_size=config.block_size,
    )


def _bytes_per_block(model: ModelConfig, config: ResolvedConfig) -> int:
    return bytes_per_block(
        num_layers=model.num_layers,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        itemsize=jnp.dtype(config.dtype).itemsize,
        block_size=config.block_size,
    )


def _estimate_step_bytes(model: ModelConfig, config: ResolvedConfig) -> int:
    """A first guess, generous: a few activations per token and a few copies of the logits."""
    tokens, rows = config.step_shapes[-1]
    width = model.hidden_size * 6 + model.intermediate_size * 3
    return 4 * (tokens * width + 6 * rows * model.vocab_size)

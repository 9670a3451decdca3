"""From a model's shape and weights to a running executor: compile, load, plan memory, allocate."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from fastgen_jax.batching import StepShape
from fastgen_jax.config import ResolvedConfig
from fastgen_jax.errors import ConfigError
from fastgen_jax.kv.layout import bytes_per_block
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.decoder import Decoder, Weights
from fastgen_jax.models.packed import PackedWeights
from fastgen_jax.parallel.hosts import least_of_all_hosts, on_all_devices
from fastgen_jax.parallel.mesh import num_shares
from fastgen_jax.parallel.sharding import PAGE_AXES, constrain, replicated
from fastgen_jax.runtime.abstract import (
    STEP_ARGUMENTS,
    AbstractStep,
    abstract_split,
    abstract_step_of,
)
from fastgen_jax.runtime.cache import CacheSpec, Pages, cache_spec
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
from fastgen_jax.runtime.weights import WeightSource, bytes_per_device, num_bytes
from fastgen_jax.sampling import RowLimits, RowState, init_row_state, write_row
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
    mesh: Mesh | None = None,
    kv_head_repeats: int = 1,
) -> Runtime:
    """An executor with all programs compiled and all memory taken.

    Weights load while the programs compile. The pool's size comes from the compiled programs'
    own memory analysis: a first compilation uses an estimate, which stands unless the analysis
    shows that it doesn't fit. ``in_background`` compiles one step shape now and leaves the others
    to ``Runtime.compile_rest``, unless all are on disk; the estimate then stands for those. On a
    ``mesh`` the model has a kv head at least for every device, ``kv_head_repeats`` of which are the
    same, and memory is that of one device.

    Raises:
        ConfigError: the memory doesn't hold one request of the longest length.
    """
    device = jax.local_devices()[0]
    shares = num_shares(mesh)
    unroll_layers = device.platform != "cpu"
    abstract = source.abstract()
    split = abstract_split(model, abstract)
    linear = _fastest_products(abstract, config, cache_dir)
    row_shapes = jax.eval_shape(lambda: init_row_state(limits))
    sizes = _Sizes(
        # The devices of a CPU are made up, and share its memory.
        available=available_bytes(device) // (shares if device.platform == "cpu" else 1),
        weights=bytes_per_device(split.leaves),
        row_state=num_bytes(row_shapes),
        step=_estimate_step_bytes(model, config),
    )
    # What is compiled for the devices of several hosts can't be kept.
    is_alone = jax.process_count() == 1
    programs_on_disk = ProgramCache(cache_dir if is_alone else None)
    with ThreadPoolExecutor(1, thread_name_prefix="fastgen-load") as pool:
        loading = pool.submit(_load, model, source, progress.on_weight)
        num_blocks = num_kv_blocks or least_of_all_hosts(_plan(model, config, sizes, shares))
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
                    num_shards=shares,
                )
                for shape in config.step_shapes
            ]
            wanted = _programs(split, specs, limits, mesh)
            is_on_disk = all(programs_on_disk.has(program.key) for program in wanted)
            names = _names_for_later(config) if in_background and not is_on_disk else ()
            later = [program for program in wanted if program.name in names]
            programs, report = compile_programs(
                [p for p in wanted if p.name not in names], programs_on_disk, progress.on_program
            )
            running = (program for name, program in programs.items() if name != ALLOCATE)
            measured = step_bytes(running)
            sizes = replace(sizes, step=max(measured, sizes.step) if later else measured)
            plan = _memory_plan(model, config, sizes, cache, shares)
            if least_of_all_hosts(int(plan.fits)):
                break
            if num_kv_blocks is not None:
                raise ConfigError(
                    f"needs more than the memory there is:\n{plan}",
                    field="num_kv_blocks",
                    value=num_kv_blocks,
                    remedy="lower it, or leave it out",
                )
            num_blocks = least_of_all_hosts(_plan(model, config, sizes, shares))
        # Zeroing the pool takes seconds on a CPU; started here, it runs beside the loading.
        pages, rows = programs[ALLOCATE]()
        leaves, load_seconds = loading.result()
    plan = replace(plan, kv_head_repeats=kv_head_repeats)
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
        place=_placement(mesh),
    )
    return Runtime(
        executor=executor,
        ready_shapes=executor.ready_shapes,
        compilation=BackgroundCompilation(later, programs_on_disk, report),
        memory_plan=plan,
        load_seconds=load_seconds,
    )


def _placement(mesh: Mesh | None) -> Callable[[np.ndarray], Any]:
    """How a step's input gets to the devices."""
    if mesh is None or jax.process_count() == 1:
        return lambda values: values
    sharding = replicated(mesh)
    return lambda values: on_all_devices(values, sharding)


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


def _programs(
    split: SplitModel, specs: list[StepSpec], limits: RowLimits, mesh: Mesh | None
) -> list[Program]:
    # The largest compiles longest, so it starts first.
    steps = [abstract_step_of(split, spec, limits, mesh) for spec in reversed(specs)]
    sizes = None if mesh is None else mesh.shape_tuple
    devices = () if mesh is None else tuple(mesh.devices.flat)

    def on_all(tree: Any) -> Any:
        return jax.tree.map(lambda array: constrain(array, mesh), tree)

    def write(row_state: RowState, row: Array, packed_row: Array) -> RowState:
        return on_all(write_row(row_state, row, packed_row))

    arguments = {
        "row_state": steps[0].arguments[STEP_ARGUMENTS.index("row_state")],
        "row": jax.ShapeDtypeStruct((), jnp.int32),
        "packed_row": jax.ShapeDtypeStruct(limits.neutral_row.shape, jnp.int32),
    }
    if mesh is not None:
        for name in ("row", "packed_row"):
            arguments[name] = arguments[name].update(sharding=replicated(mesh))
    row = Program(
        name=WRITE_ROW,
        function=write,
        description=(limits, sizes),
        arguments=arguments,
        donated=("row_state",),
        devices=devices,
    )
    cache, is_native = specs[0].cache, isinstance(specs[0].attention, AttentionNative)

    def empty() -> tuple[Pages, RowState]:
        pages = cache.zeros(is_native=is_native)
        pages = tuple(constrain(pool, mesh, *PAGE_AXES) for pool in pages)
        return pages, on_all(init_row_state(limits))

    allocate = Program(
        name=ALLOCATE,
        function=empty,
        description=(cache, is_native, limits, sizes),
        arguments={},
        devices=devices,
    )
    of_steps = [
        replace(_step_program(spec.shape, step), devices=devices)
        for spec, step in zip(reversed(specs), steps, strict=True)
    ]
    return [*of_steps, row, allocate]


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


def _plan(model: ModelConfig, config: ResolvedConfig, sizes: _Sizes, shares: int) -> int:
    return plan_blocks(
        available=sizes.available,
        weights=sizes.weights,
        row_state=sizes.row_state,
        step=sizes.step,
        fraction=config.kv_cache_memory_fraction,
        bytes_per_block=_bytes_per_block(model, config, shares),
        useful_blocks=config.max_num_seqs * config.max_blocks_per_seq + 1,
        blocks_of_longest=config.max_blocks_per_seq,
    )


def _memory_plan(
    model: ModelConfig, config: ResolvedConfig, sizes: _Sizes, cache: CacheSpec, shares: int
) -> MemoryPlan:
    return MemoryPlan(
        available=sizes.available,
        weights=sizes.weights,
        row_state=sizes.row_state,
        step=sizes.step,
        kv_cache=cache.num_blocks * _bytes_per_block(model, config, shares),
        num_blocks=cache.num_blocks,
        block_size=config.block_size,
        num_devices=shares,
    )


def _bytes_per_block(model: ModelConfig, config: ResolvedConfig, shares: int) -> int:
    return bytes_per_block(
        num_layers=model.num_layers,
        num_kv_heads=model.num_kv_heads // shares,
        head_dim=model.head_dim,
        itemsize=jnp.dtype(config.dtype).itemsize,
        block_size=config.block_size,
    )


def _estimate_step_bytes(model: ModelConfig, config: ResolvedConfig) -> int:
    """A first guess, generous: a few activations per token and a few copies of the logits."""
    tokens, rows = config.step_shapes[-1]
    width = model.hidden_size * 6 + model.intermediate_size * 3
    return 4 * (tokens * width + 6 * rows * model.vocab_size)

"""From a model's name to a plan: sizes checked, steps compiled, kernels priced."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fastgen_jax.config import EngineConfig, Implementation, ResolvedConfig, resolve_config
from fastgen_jax.errors import ConfigError
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.parallel.division import check_divisible, with_repeated_kv_heads
from fastgen_jax.plan.deviceless import CompiledStep, compile_step, find_compiler
from fastgen_jax.plan.gpus import Gpu, find_gpu
from fastgen_jax.plan.graphs import read_graphs
from fastgen_jax.plan.hlo import parse_hlo
from fastgen_jax.plan.launches import (
    Launch,
    StepLaunches,
    copies,
    step_launches,
)
from fastgen_jax.plan.load import ITEM_SIZES, StepLoad, Work, attention_work, least_work
from fastgen_jax.plan.memory import GpuMemory, plan_memory
from fastgen_jax.plan.models import find_shape
from fastgen_jax.plan.origins import StepArguments
from fastgen_jax.plan.registers import kernel_registers
from fastgen_jax.plan.report import CompiledFacts, Estimate, Plan, StepPlanned
from fastgen_jax.plan.request import CompileRequest
from fastgen_jax.plan.roofline import Cost, Efficiencies, price, with_attention
from fastgen_jax.plan.spec import plan_spec, target_of_gpu
from fastgen_jax.runtime.kernels import with_kernels
from fastgen_jax.sampling.row_limits import RowLimits

OnProgress = Callable[[str], None]


def plan(
    model: str | Path | ModelConfig,
    *,
    gpu: str = "h100",
    tp: int = 1,
    ep: int = 1,
    context: int | None = None,
    dtype: str = "bfloat16",
    max_num_seqs: int = 256,
    token_budget: int = 768,
    block_size: int = 32,
    step_shapes: Sequence[tuple[int, int]] | None = None,
    implementation: Implementation | None = None,
    efficiencies: Efficiencies | None = None,
    on_progress: OnProgress | None = None,
) -> Plan:
    """The engine's steps compiled for GPUs that needn't be there, taken apart and priced.

    Args:
        model: a built-in shape's name, a config.json, a directory with one, or a shape.
        gpu: name of the GPU; ``plan.gpus.GPUS`` has all.
        tp: GPUs that share the model; with ``ep``, that share each expert.
        ep: groups of ``tp`` GPUs, over which a mixture's experts are dealt out.
        context: tokens of every running request; None takes 8192 or the model's own limit.
        dtype: of weights, activations and cache.
        max_num_seqs: rows of a step.
        token_budget: tokens of the largest step.
        block_size: tokens of a block of the cache.
        step_shapes: (tokens, rows) of the steps, as in ``EngineConfig``; None takes decodes alone
            and the full budget. With them, ``token_budget`` doesn't count.
        implementation: "mosaic_gpu", "triton" or "xla" for attention and page write; None takes
            the GPU's best for each.
        efficiencies: the estimate's assumptions, where others than the default are wanted.
        on_progress: hears a word when a step's compilation begins and when it ends.

    Raises:
        ConfigError: before anything is compiled: an unknown name, sizes that can't be split, a
            model that doesn't fit; or the compiler's packages are missing.
        CompilationError: the compiler refused a step or aborted.
    """
    shape = model if isinstance(model, ModelConfig) else find_shape(model)
    name = shape.architecture if isinstance(model, ModelConfig) else str(model)
    device = find_gpu(gpu)
    _check_sizes(shape, tp=tp, ep=ep, dtype=dtype, context=context)
    num_parameters = shape.num_parameters
    num_devices = tp * ep
    shape = with_repeated_kv_heads(shape, num_devices)
    context = min(8192, shape.max_position_embeddings) if context is None else context
    settings = EngineConfig(
        dtype=dtype,
        token_budget=token_budget if step_shapes is None else None,
        max_num_seqs=max_num_seqs,
        max_model_len=context,
        block_size=block_size,
        step_shapes=step_shapes,
    )
    config = resolve_config(settings, platform="gpu", model_max_len=shape.max_position_embeddings)
    limits = RowLimits(
        max_num_seqs=config.max_num_seqs,
        max_model_len=config.max_model_len,
        vocab_size=shape.vocab_size,
        max_logprobs=min(settings.max_logprobs, shape.vocab_size),
        max_logit_bias=settings.max_logit_bias,
        max_bad_words=settings.max_bad_words,
    )
    guess = plan_memory(shape, config, limits, device, devices=num_devices)
    for step_shape in config.step_shapes:
        spec = plan_spec(
            shape,
            step_shape,
            num_blocks=guess.kv_tokens // block_size + 1,
            block_size=block_size,
            max_model_len=context,
            max_logprobs=limits.max_logprobs,
            dtype=dtype,
        )
        with_kernels(
            spec,
            shape,
            target_of_gpu(device),
            implementation=implementation,
            num_shards=num_devices,
        )
    setting = _Setting(
        model=shape,
        config=config,
        limits=limits,
        gpu=device,
        tensor=tp,
        expert=ep,
        rates=efficiencies or Efficiencies(),
        compiler=find_compiler(),
    )
    with tempfile.TemporaryDirectory(prefix="fastgen-plan-") as directory:
        compiled = _compile_all(
            setting, guess, implementation, Path(directory), on_progress or (lambda _: None)
        )
        memory = plan_memory(
            shape,
            config,
            limits,
            device,
            devices=num_devices,
            step_bytes=max(_fresh_bytes(step) for step in compiled),
        )
        steps = tuple(
            _take_apart(setting, size, step, memory)
            for size, step in zip(config.step_shapes, compiled, strict=True)
        )
    return Plan(
        model=name,
        num_parameters=num_parameters,
        gpu=device.name,
        tensor_parallel_size=tp,
        expert_parallel_size=ep,
        dtype=dtype,
        context=context,
        memory=memory,
        steps=steps,
        assumed=setting.rates,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    model: ModelConfig
    config: ResolvedConfig
    limits: RowLimits
    gpu: Gpu
    tensor: int
    expert: int
    rates: Efficiencies
    compiler: Path

    @property
    def devices(self) -> int:
        return self.tensor * self.expert


def _check_sizes(model: ModelConfig, *, tp: int, ep: int, dtype: str, context: int | None) -> None:
    if dtype not in ITEM_SIZES:
        raise ConfigError(
            "a plan can't be made for it",
            field="dtype",
            value=dtype,
            remedy="use one of " + ", ".join(ITEM_SIZES),
        )
    for name, size in (("tp", tp), ("ep", ep)):
        if size < 1:
            raise ConfigError("must be at least 1", field=name, value=size, remedy="use 1 or more")
    check_divisible(model, tp, ep)
    if context is not None and not 1 <= context <= model.max_position_embeddings:
        raise ConfigError(
            f"the model's own limit is {model.max_position_embeddings} tokens",
            field="context",
            value=context,
            remedy=f"use 1 to {model.max_position_embeddings}",
        )


def _compile_all(
    setting: _Setting,
    memory: GpuMemory,
    implementation: Implementation | None,
    directory: Path,
    on_progress: OnProgress,
) -> list[CompiledStep]:
    """Every step shape, two at a time: one compilation keeps little more than one core busy."""

    def compile_one(shape: tuple[int, int]) -> CompiledStep:
        tokens, rows = shape
        place = directory / f"{tokens}x{rows}"
        place.mkdir()
        on_progress(f"compiling the step of {tokens} tokens, {rows} rows")
        request = CompileRequest(
            model=setting.model,
            gpu=setting.gpu.name,
            tensor_parallel_size=setting.tensor,
            expert_parallel_size=setting.expert,
            dtype=setting.config.dtype,
            num_tokens=tokens,
            num_rows=rows,
            max_num_seqs=setting.config.max_num_seqs,
            max_model_len=setting.config.max_model_len,
            block_size=setting.config.block_size,
            num_blocks=memory.kv_tokens // setting.config.block_size + 1,
            max_logprobs=setting.limits.max_logprobs,
            max_logit_bias=setting.limits.max_logit_bias,
            max_bad_words=setting.limits.max_bad_words,
            implementation=implementation,
            directory=str(place),
        )
        step = compile_step(request, setting.compiler)
        on_progress(
            f"compiled the step of {tokens} tokens, {rows} rows "
            f"in {step.answer.compile_seconds:.0f} s"
        )
        return step

    with ThreadPoolExecutor(2, thread_name_prefix="fastgen-plan") as pool:
        return list(pool.map(compile_one, setting.config.step_shapes))


def _take_apart(
    setting: _Setting, shape: tuple[int, int], step: CompiledStep, memory: GpuMemory
) -> StepPlanned:
    answer = step.answer
    names = StepArguments(weight_names=answer.weight_names, num_pages=answer.num_pages)
    found = step_launches(parse_hlo(step.program), names)
    load = step_load(shape, setting.config, memory)
    work = attention_work(setting.model, load, devices=setting.devices, dtype=setting.config.dtype)
    launches, has_kernel = with_attention(found.launches, work, num_layers=setting.model.num_layers)
    tokens, rows = shape
    return StepPlanned(
        name="decode" if load.chunk == 0 else "full budget",
        num_tokens=tokens,
        num_rows=rows,
        compiled=_facts(setting, shape, step, found, has_kernel=has_kernel),
        estimate=_estimate(setting, shape, load, launches),
    )


def step_load(shape: tuple[int, int], config: ResolvedConfig, memory: GpuMemory) -> StepLoad:
    """As many decodes as rows and cache allow, and in a larger step one chunk in what is left."""
    tokens, rows = shape
    fitting = max(1, memory.kv_tokens // config.max_model_len)
    if tokens == rows:
        return StepLoad(num_decodes=min(rows, fitting), chunk=0, context=config.max_model_len)
    decodes = max(0, min(rows, fitting) - 1)
    chunk = min(tokens - decodes, config.max_model_len)
    return StepLoad(num_decodes=decodes, chunk=chunk, context=config.max_model_len)


def _fresh_bytes(step: CompiledStep) -> int:
    answer = step.answer
    return answer.temp_bytes + answer.output_bytes - answer.alias_bytes


def _facts(
    setting: _Setting,
    shape: tuple[int, int],
    step: CompiledStep,
    found: StepLaunches,
    *,
    has_kernel: bool,
) -> CompiledFacts:
    answer = step.answer
    ours = {launch.pallas_name for launch in found.launches if launch.pallas_name}
    return CompiledFacts(
        chosen=answer.kernels,
        has_attention_kernel=has_kernel,
        argument_bytes=answer.argument_bytes,
        temp_bytes=answer.temp_bytes,
        aliased_bytes=answer.alias_bytes,
        donated_bytes=answer.page_bytes + answer.row_state_bytes,
        needed_temp_bytes=_needed_temp_bytes(setting, shape),
        num_kernels=sum(launch.count for launch in found.launches),
        graphs=read_graphs(step.thunks),
        weight_copies=sum(launch.count for launch in copies(found.launches, "weight")),
        kv_copies=sum(launch.count for launch in copies(found.launches, "kv")),
        collectives=_collectives(found.launches),
        kernels=kernel_registers(step.directory, ours, setting.gpu.ptx_arch, setting.compiler),
        loops=found.loops,
        conditionals=found.conditionals,
        trace_seconds=answer.trace_seconds,
        compile_seconds=answer.compile_seconds,
    )


def _needed_temp_bytes(setting: _Setting, shape: tuple[int, int]) -> int:
    """Logits as they are computed and, on several GPUs, as they are exchanged; the MLP's values."""
    tokens, rows = shape
    model, devices = setting.model, setting.devices
    logits = 4 * rows * model.vocab_size // devices * (1 if devices == 1 else 2)
    width = 2 * model.hidden_size + 2 * model.intermediate_size // devices
    return logits + tokens * width * ITEM_SIZES[setting.config.dtype]


def _collectives(launches: Iterable[Launch]) -> tuple[tuple[str, int, int], ...]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for launch in launches:
        if launch.kind == "collective":
            counts[launch.name] += launch.count
            sizes[launch.name] += launch.count * launch.read
    return tuple((name, count, sizes[name]) for name, count in counts.items())


def _estimate(
    setting: _Setting, shape: tuple[int, int], load: StepLoad, launches: tuple[Launch, ...]
) -> Estimate:
    costs = [price(launch, setting.gpu, setting.rates) for launch in launches]
    costs.sort(key=lambda cost: -cost.seconds)
    least = least_work(setting.model, load, devices=setting.devices, dtype=setting.config.dtype)
    return Estimate(
        load=load,
        seconds=sum(cost.seconds for cost in costs),
        least=least,
        floor_seconds=_floor_seconds(least, setting.gpu),
        num_bytes=sum(launch.num_bytes for launch in launches),
        flops=sum(launch.flops * launch.count for launch in launches),
        padding_flops=_padding_flops(shape, load, launches),
        costs=tuple(costs),
        seconds_by_kind=_sums((cost.launch.kind, cost.seconds) for cost in costs),
        seconds_by_bound=_sums((cost.bound, cost.seconds) for cost in costs),
    )


def _floor_seconds(least: Work, gpu: Gpu) -> float:
    return max(least.num_bytes / gpu.bandwidth, least.flops / gpu.bf16_flops)


def _padding_flops(shape: tuple[int, int], load: StepLoad, launches: Iterable[Launch]) -> int:
    """FLOPs of products over tokens or rows that the load doesn't fill."""
    tokens, rows = shape
    padding = 0.0
    for launch in launches:
        if launch.kind == "gemm" and launch.sizes is not None:
            is_head = launch.name in ("head", "embed")
            real = load.num_rows / rows if is_head else load.num_tokens / tokens
            padding += launch.flops * launch.count * (1 - real)
    return round(padding)


def _sums(items: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    totals: Counter[str] = Counter()
    for name, amount in items:
        totals[name] += amount  # pyright: ignore[reportArgumentType]  # floats add as well
    return tuple(totals.most_common())


__all__ = ["Cost", "OnProgress", "plan", "step_load"]

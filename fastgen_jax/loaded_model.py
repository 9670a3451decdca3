"""A model by any of its names, brought up as an engine with its tokenizer."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from fastgen_jax import __version__
from fastgen_jax.batching import StepShape
from fastgen_jax.config import EngineConfig, ResolvedConfig, resolve_config
from fastgen_jax.engine import Engine
from fastgen_jax.engine_setup import EngineSetup
from fastgen_jax.errors import ConfigError
from fastgen_jax.markup import Markup, joined, table
from fastgen_jax.model_files import ModelFiles, open_model, open_tokenizer, weight_source
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.sources import resolve_model
from fastgen_jax.observe.event_log import EventLog, check_log_path
from fastgen_jax.observe.observer import Observer
from fastgen_jax.parallel.division import (
    check_divisible,
    kv_head_repeats,
    with_repeated_kv_heads,
)
from fastgen_jax.parallel.hosts import current_hosts
from fastgen_jax.parallel.mesh import make_mesh, num_shares
from fastgen_jax.replaying.header import RunHeader
from fastgen_jax.replaying.model_identity import logged_model
from fastgen_jax.runtime.compile import (
    BackgroundCompilation,
    CompilationCount,
    CompileReport,
    cache_directory,
)
from fastgen_jax.runtime.leading import (
    LeadingExecutor,
    follow_leader,
    lead_others,
    run_commands,
)
from fastgen_jax.runtime.memory import MemoryPlan
from fastgen_jax.runtime.weights import (
    num_bytes,
)
from fastgen_jax.sampling import RowLimits
from fastgen_jax.scheduling.policy import get_policy
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.step_executor import StepExecutor
from fastgen_jax.text import Tokenizer
from pallas_kernels.native import native_library, native_obstacle, set_num_threads

if TYPE_CHECKING:
    from fastgen_jax.runtime.build import Runtime


type MakeEngine = Callable[[EngineSetup, StepExecutor, Tokenizer | None], Engine]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupReport:
    """What starting took, in seconds; loading and compiling overlap."""

    total_seconds: float
    load_seconds: float
    memory_plan: MemoryPlan

    def _repr_html_(self) -> str:
        times = [
            ("start", f"{self.total_seconds:.2f} s"),
            ("loading weights, beside compiling", f"{self.load_seconds:.2f} s"),
        ]
        return joined([table(times), Markup(self.memory_plan._repr_html_())])


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A running engine and everything about its model."""

    engine: Engine
    path: Path
    model: ModelConfig
    config: ResolvedConfig
    tokenizer: Tokenizer | None
    startup: StartupReport
    compilation: BackgroundCompilation
    compilations: CompilationCount

    def compile_report(self) -> CompileReport:
        """What compiling everything took; waits until everything is compiled."""
        self.engine.run_late_work()
        return self.compilation.wait()

    def close(self) -> None:
        """Free the device memory; waits for what is being compiled."""
        try:
            self.compilation.wait()
        finally:
            self.compilations.stop()
            self.engine.close()

    @property
    def num_programs(self) -> int:
        """Programs that are ready to run."""
        return self.compilation.num_ready

    @property
    def num_compilations_since_start(self) -> int:
        """Programs that XLA compiled in this process since the engine was ready, for anybody."""
        return self.compilations.count


def load_model(
    model: str | Path,
    config: EngineConfig,
    *,
    observers: Sequence[Observer] = (),
    make_engine: MakeEngine | None = None,
) -> LoadedModel:
    """The model with all programs compiled, weights loaded and memory taken.

    ``make_engine`` builds another engine than ``config`` says, for who replays one; it is then told
    of no observers, and writes no log.

    Raises:
        ConfigError: the model isn't found, or a setting doesn't fit it.
        CheckpointError: its files are damaged or incomplete.
        UnsupportedModelError: it needs mathematics that isn't implemented.
        HostLostError: one of several hosts doesn't come.
    """
    start = time.perf_counter()
    policy = get_policy(config.policy)
    hosts = current_hosts()
    if not hosts.is_leader:
        raise ConfigError(
            f"requests come in at host 0 of {hosts.count}",
            field="host",
            value=hosts.index,
            remedy="call fastgen_jax.follow with the same model and settings here",
        )
    if config.replay_log is not None:
        check_log_path(config.replay_log)
    path = resolve_model(model, progress=config.show_progress)
    with open_model(path, config) as files:
        parts = _prepare(files, config)
        resolved, limits = parts.resolved, parts.limits
        leader = None
        if hosts.count > 1:
            leader = lead_others(parts.facts, hosts, timeout=config.host_timeout_seconds)
        try:
            runtime, tokenizer = _bring_up(files, config, parts)
        except BaseException:
            if leader is not None:
                leader.close()
            raise
    executor = runtime.executor
    if leader is not None:
        executor = LeadingExecutor(executor, leader)
    eos_token_ids = set(files.config.eos_token_ids)
    if tokenizer is not None:
        eos_token_ids.update(tokenizer.eos_token_ids)
    setup = EngineSetup(
        scheduler=replace(
            scheduler_config(config, resolved, runtime.memory_plan.num_blocks),
            enable_prefix_caching=config.enable_prefix_caching
            and not files.config.depends_on_length,
        ),
        shapes=tuple(StepShape(*shape) for shape in resolved.step_shapes),
        limits=limits,
        eos_token_ids=tuple(sorted(eos_token_ids)),
        seed=config.seed,
    )
    try:
        if make_engine is not None:
            engine = make_engine(setup, executor, tokenizer)
        else:
            if config.replay_log is not None:
                header = RunHeader.of(
                    setup,
                    config.policy,
                    version=__version__,
                    has_tokenizer=tokenizer is not None,
                    model=logged_model(model, path, files.config),
                    config=config,
                    resolved=resolved,
                    machine=_device_facts(),
                )
                observers = (EventLog(config.replay_log, header.to_data()), *observers)
            engine = setup.build(
                executor=executor, policy=policy, tokenizer=tokenizer, observers=observers
            )
    except BaseException:
        executor.close()
        raise
    if runtime.ready_shapes != runtime.executor.shapes:
        engine.use_shapes(runtime.ready_shapes)
        engine.after_first_token(lambda: runtime.compile_rest(engine.add_shape))
    return LoadedModel(
        engine=engine,
        path=path,
        model=files.config,
        config=resolved,
        tokenizer=tokenizer,
        startup=StartupReport(
            total_seconds=time.perf_counter() - start,
            load_seconds=runtime.load_seconds,
            memory_plan=runtime.memory_plan,
        ),
        compilation=runtime.compilation,
        compilations=CompilationCount(),
    )


def lend_devices(model: str | Path, config: EngineConfig) -> None:
    """Run on this host's devices what host 0's engine asks for; returns when that is closed.

    Raises:
        ConfigError: this is host 0, or host 0 has another model or other settings.
        HostLostError: host 0 is gone.
    """
    config = replace(config, compile_in_background=False)
    hosts = current_hosts()
    if hosts.is_leader:
        raise ConfigError(
            f"host 0 of {hosts.count} leads",
            field="host",
            value=0,
            remedy="use LLM here, and call follow on the others after fastgen_jax.join_hosts",
        )
    path = resolve_model(model, progress=config.show_progress)
    with open_model(path, config) as files:
        parts = _prepare(files, config)
        follower = follow_leader(parts.facts, hosts, timeout=config.host_timeout_seconds)
        try:
            runtime, _ = _bring_up(files, config, parts)
        except BaseException as error:
            follower.fail(f"{type(error).__name__}: {error}")
            raise
    try:
        run_commands(runtime.executor, follower)
    finally:
        runtime.executor.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What follows from a model and settings before anything is compiled."""

    resolved: ResolvedConfig
    limits: RowLimits
    mesh: Mesh | None
    facts: Mapping[str, str]


def _prepare(files: ModelFiles, config: EngineConfig) -> _Parts:
    obstacle = native_obstacle()
    model = files.config
    resolved = resolve_config(
        config,
        platform=jax.default_backend(),
        model_max_len=model.max_length,
        has_native=obstacle is None,
        can_pack=model.moe is None,
    )
    mesh = _mesh(model, config)
    _prepare_native(config, resolved, obstacle)
    limits = RowLimits(
        max_num_seqs=resolved.max_num_seqs,
        max_model_len=resolved.max_model_len,
        vocab_size=model.vocab_size,
        max_logprobs=config.max_logprobs,
        max_logit_bias=config.max_logit_bias,
        max_bad_words=config.max_bad_words,
    )
    sizes = {
        "tensor_parallel_size": config.tensor_parallel_size,
        "expert_parallel_size": config.expert_parallel_size,
    }
    named = {field.name: getattr(resolved, field.name) for field in fields(resolved)}
    facts = {name: repr(value) for name, value in (named | sizes).items()}
    return _Parts(
        resolved=resolved,
        limits=limits,
        mesh=mesh,
        facts={
            **facts,
            "model": repr(model),
            "limits": repr(limits),
            "version": __version__,
        },
    )


def scheduler_config(
    config: EngineConfig, resolved: ResolvedConfig, num_blocks: int
) -> SchedulerConfig:
    """The scheduler's limits for resolved settings and a pool of num_blocks."""
    return SchedulerConfig(
        token_budget=resolved.token_budget,
        max_num_seqs=resolved.max_num_seqs,
        max_step_rows=resolved.step_shapes[-1][1],
        max_model_len=resolved.max_model_len,
        block_size=resolved.block_size,
        num_blocks=num_blocks,
        step_sizes=tuple(tokens for tokens, _ in resolved.step_shapes),
        step_overhead=resolved.step_overhead,
        max_chained_steps=resolved.max_chained_steps,
        max_chained_tokens=resolved.max_chained_tokens,
        chunk_multiple=config.chunk_multiple,
        enable_prefix_caching=config.enable_prefix_caching,
    )


def _bring_up(
    files: ModelFiles, config: EngineConfig, parts: _Parts
) -> tuple[Runtime, Tokenizer | None]:
    from fastgen_jax.runtime.build import Progress, build_runtime

    resolved, limits, mesh = parts.resolved, parts.limits, parts.mesh
    source = weight_source(files, config, resolved, mesh)
    tokenizer = open_tokenizer(files)
    # None: tqdm hides the bar where there is no terminal.
    hide = not config.show_progress or None
    with (
        tqdm(
            desc="Loading weights",
            total=num_bytes(source.abstract()),
            unit="B",
            unit_scale=True,
            disable=hide,
            position=0,
            leave=False,
        ) as loading,
        tqdm(
            desc="Compiling steps",
            total=len(resolved.step_shapes) + 2,  # and two that write and allocate rows
            disable=hide,
            position=1,
            leave=False,
        ) as compiling,
    ):
        progress = Progress(
            on_weight=lambda size: _advance(loading, size),
            on_program=lambda name: _advance(compiling, 1, name),
        )
        runtime = build_runtime(
            with_repeated_kv_heads(files.config, num_shares(mesh)),
            resolved,
            limits,
            source,
            num_kv_blocks=config.num_kv_blocks,
            cache_dir=cache_directory(config.compilation_cache_dir),
            in_background=config.compile_in_background,
            progress=progress,
            mesh=mesh,
            kv_head_repeats=kv_head_repeats(files.config, num_shares(mesh)),
        )
    return runtime, tokenizer


def _mesh(model: ModelConfig, config: EngineConfig) -> Mesh | None:
    """The devices that share the model; None where it is one."""
    tensor, expert = config.tensor_parallel_size, config.expert_parallel_size
    if config.num_devices == 1 and current_hosts().count == 1:
        return None
    check_divisible(model, tensor, expert)
    devices = jax.devices()
    idle = {device.process_index for device in devices[config.num_devices :]}
    if idle - {device.process_index for device in devices[: config.num_devices]}:
        raise ConfigError(
            f"leaves host {max(idle)} without a part of the model",
            field="tensor_parallel_size",
            value=tensor,
            remedy=f"use all {len(devices)} devices of the hosts, or join fewer hosts",
        )
    if len(devices) < config.num_devices:
        raise ConfigError(
            f"with expert_parallel_size={expert} the model takes {config.num_devices} devices, and "
            f"jax finds {len(devices)}",
            field="tensor_parallel_size",
            value=tensor,
            remedy="use fewer; on a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=8 makes "
            "virtual ones",
        )
    return make_mesh(devices[: config.num_devices], tensor=tensor, expert=expert)


def _device_facts() -> dict[str, object]:
    device = jax.devices()[0]
    return {"jax": jax.__version__, "platform": device.platform, "device": device.device_kind}


def _prepare_native(config: EngineConfig, resolved: ResolvedConfig, obstacle: str | None) -> None:
    """Load the native kernels and give them their threads, or say once why there are none."""
    if resolved.is_native:
        native_library()
        set_num_threads(resolved.num_threads)
    elif (
        jax.default_backend() == "cpu"
        and config.implementation == "auto"
        and config.show_progress
        and obstacle is not None
    ):
        _say_once(f"No native CPU kernels: {obstacle}. Steps run on XLA, which is slower.")


@cache
def _say_once(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def _advance(bar: tqdm, amount: int, note: str | None = None) -> None:
    if note is not None:
        bar.set_postfix_str(note)
    bar.update(amount)

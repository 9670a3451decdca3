"""Ahead-of-time compilation of everything an engine runs, and the guard that keeps it so."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax import monitoring

from fastgen_jax.config import user_cache_dir
from fastgen_jax.errors import RecompileError

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A function to compile: its arguments' shapes by name, and which of them it consumes."""

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any]
    donated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRecord:
    """What compiling one program took, in seconds."""

    name: str
    trace_seconds: float
    compile_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileReport:
    """What compiling everything took; ``wall_seconds`` is less than the sum when in parallel."""

    records: tuple[CompileRecord, ...]
    wall_seconds: float
    num_cache_hits: int

    def __str__(self) -> str:
        """A line a program, and how many came out of the persistent cache."""
        lines = [
            f"  {r.name:<18} traced {r.trace_seconds:5.2f} s   compiled {r.compile_seconds:5.2f} s"
            for r in self.records
        ]
        hits = f"{self.num_cache_hits} of {len(self.records)} programs from the cache on disk"
        return "\n".join([f"Compiled in {self.wall_seconds:.2f} s ({hits})", *lines])


class CompiledProgram:
    """One executable; calling it with any other shape or dtype raises instead of tracing."""

    def __init__(self, program: Program, executable: jax.stages.Compiled) -> None:
        self.name = program.name
        self.executable = executable
        self._arguments = program.arguments

    def __call__(self, *arguments: Any) -> Any:
        """The program's results.

        Raises:
            RecompileError: an argument's shape or dtype isn't the declared one.
        """
        try:
            return self.executable(*arguments)
        except TypeError as error:
            self._explain(arguments, error)
            raise

    def _explain(self, arguments: tuple[Any, ...], error: TypeError) -> None:
        for (name, declared), given in zip(self._arguments.items(), arguments, strict=True):
            if _shapes(declared) != _shapes(given):
                raise RecompileError(
                    f"the compiled program {self.name!r} would have to be traced again: it was "
                    f"declared with {_difference(declared, given)}",
                    field=name,
                    remedy="declare the shape in EngineConfig.step_shapes",
                ) from error


def compile_programs(
    programs: list[Program], on_done: Callable[[str], None] | None = None
) -> tuple[dict[str, CompiledProgram], CompileReport]:
    """Every program compiled, in parallel, and a report of it; ``on_done`` hears each name."""
    start = time.perf_counter()
    with count_events(_CACHE_HIT_EVENT) as hits, ThreadPoolExecutor(len(programs)) as pool:
        done = list(pool.map(lambda program: _compile(program, on_done), programs))
    report = CompileReport(
        records=tuple(record for _, record in done),
        wall_seconds=time.perf_counter() - start,
        num_cache_hits=hits.count,
    )
    return {program.name: program for program, _ in done}, report


def enable_persistent_cache(directory: str | None) -> None:
    """Keep compiled programs of this process on disk: None is the user's cache, "off" nowhere.

    The setting is jax's own and holds for the whole process; one made by the user stays.
    """
    if directory == "off" or (directory is None and jax.config.jax_compilation_cache_dir):
        return
    path = Path(directory) if directory is not None else user_cache_dir() / "compiled"
    path.mkdir(parents=True, exist_ok=True)
    if jax.config.jax_compilation_cache_dir != str(path):
        jax.config.update("jax_compilation_cache_dir", str(path))
        # The cache binds to a directory at its first use; this makes it bind anew.
        jax.experimental.compilation_cache.compilation_cache.reset_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@dataclass(slots=True)
class EventCount:
    """How often an event has happened since counting began."""

    count: int = 0


@contextmanager
def count_events(event: str) -> Iterator[EventCount]:
    """Count a jax.monitoring event while the block runs."""
    seen = EventCount()

    def on_event(name: str, **_: Any) -> None:
        seen.count += name == event

    def on_duration(name: str, _seconds: float, **_: Any) -> None:
        seen.count += name == event

    monitoring.register_event_listener(on_event)
    monitoring.register_event_duration_secs_listener(on_duration)
    try:
        yield seen
    finally:
        monitoring.unregister_event_listener(on_event)
        monitoring.unregister_event_duration_listener(on_duration)


def count_compilations() -> Any:
    """A context that counts the programs XLA compiles, or reads from its cache, in this process."""
    return count_events(_COMPILE_EVENT)


def _compile(
    program: Program, on_done: Callable[[str], None] | None
) -> tuple[CompiledProgram, CompileRecord]:
    names = list(program.arguments)
    donated = tuple(names.index(name) for name in program.donated)
    start = time.perf_counter()
    lowered = jax.jit(program.function, donate_argnums=donated).lower(*program.arguments.values())
    traced = time.perf_counter()
    executable = lowered.compile()
    record = CompileRecord(
        name=program.name,
        trace_seconds=traced - start,
        compile_seconds=time.perf_counter() - traced,
    )
    if on_done is not None:
        on_done(program.name)
    return CompiledProgram(program, executable), record


def _shapes(tree: Any) -> list[tuple[tuple[int, ...], str]]:
    return [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(tree)]


def _difference(declared: Any, given: Any) -> str:
    expected, actual = _shapes(declared), _shapes(given)
    if len(expected) != len(actual):
        return f"{len(expected)} arrays, given {len(actual)}"
    pairs = zip(expected, actual, strict=True)
    (shape, dtype), (given_shape, given_dtype) = next(p for p in pairs if p[0] != p[1])
    return f"{dtype}{list(shape)}, given {given_dtype}{list(given_shape)}"

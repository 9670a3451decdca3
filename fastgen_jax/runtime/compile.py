"""Ahead-of-time compilation of everything an engine runs, and the guard that keeps it so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax import Device, monitoring

from fastgen_jax.config import user_cache_dir
from fastgen_jax.errors import RecompileError
from fastgen_jax.runtime.compiler_options import compiler_options
from fastgen_jax.runtime.program_cache import ProgramCache, program_key

_CACHE_HIT_EVENT = "/jax/compilation_cache/cache_hits"
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A function to compile: its arguments' shapes by name, and which of them it consumes.

    ``devices`` are those it runs on, in the order of their mesh; none stands for the default one.
    """

    name: str
    function: Callable[..., Any]
    description: object  # whatever static besides the arguments the function was built from
    arguments: Mapping[str, Any]
    donated: tuple[str, ...] = ()
    devices: tuple[Device, ...] = ()  # pyright: ignore[reportInvalidTypeForm]

    @property
    def donated_indices(self) -> tuple[int, ...]:
        """Places of the consumed arguments."""
        names = list(self.arguments)
        return tuple(names.index(name) for name in self.donated)

    @property
    def key(self) -> str:
        """What the program is called in the cache."""
        arguments = tuple(self.arguments.values())
        return program_key(self.name, self.description, arguments, self.donated_indices)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileRecord:
    """What getting one program took, in seconds; ``is_cached`` ones were read from disk."""

    name: str
    is_cached: bool
    trace_seconds: float
    compile_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileReport:
    """What getting all programs took; ``wall_seconds`` is less than the sum when in parallel."""

    records: tuple[CompileRecord, ...]
    wall_seconds: float

    @property
    def num_cached(self) -> int:
        """Programs read from disk."""
        return sum(record.is_cached for record in self.records)

    def __str__(self) -> str:
        """A line a program."""
        lines = [f"  {record.name:<18} {_explain(record)}" for record in self.records]
        total = f"{self.num_cached} of {len(self.records)} programs from the cache on disk"
        return "\n".join([f"Compile report: {self.wall_seconds:.2f} s, {total}", *lines])


def _explain(record: CompileRecord) -> str:
    if record.is_cached:
        return f"read in {record.compile_seconds:.2f} s"
    return f"traced in {record.trace_seconds:.2f} s, compiled in {record.compile_seconds:.2f} s"


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
    programs: list[Program],
    cache: ProgramCache,
    on_done: Callable[[str], None] | None = None,
) -> tuple[dict[str, CompiledProgram], CompileReport]:
    """Every program compiled or read, in parallel, and a report; ``on_done`` hears each name."""
    start = time.perf_counter()

    def get(program: Program) -> tuple[CompiledProgram, CompileRecord]:
        found = _read(program, cache) or _compile(program, cache)
        if on_done is not None:
            on_done(program.name)
        return found

    with ThreadPoolExecutor(len(programs), thread_name_prefix="fastgen-compile") as pool:
        done = list(pool.map(get, programs))
    report = CompileReport(
        records=tuple(record for _, record in done), wall_seconds=time.perf_counter() - start
    )
    return {program.name: program for program, _ in done}, report


class BackgroundCompilation:
    """Programs that are compiled while the engine already runs with others.

    ``first`` reports what was compiled before. With no programs left it is just that report.
    """

    def __init__(self, programs: list[Program], cache: ProgramCache, first: CompileReport) -> None:
        self._programs = programs
        self._cache = cache
        self._first = first
        self._pool = ThreadPoolExecutor(max(1, len(programs)), "fastgen-compile")
        self._futures: list[Future[CompileRecord]] = []
        self._report: CompileReport | None = None
        self._started = 0.0

    def start(self, on_ready: Callable[[CompiledProgram], None]) -> None:
        """Begin; ``on_ready`` gets each program on a thread of its own."""

        def get(program: Program) -> CompileRecord:
            ready, record = _read(program, self._cache) or _compile(program, self._cache)
            on_ready(ready)
            return record

        self._started = time.perf_counter()
        self._futures = [self._pool.submit(get, program) for program in self._programs]

    @property
    def num_ready(self) -> int:
        """Programs that are compiled or read by now."""
        return len(self._first.records) + sum(
            future.done() and future.exception() is None for future in self._futures
        )

    def wait(self) -> CompileReport:
        """The report of everything that was begun, when the last of it is compiled."""
        if self._report is None:
            records = tuple(future.result() for future in self._futures)
            self._pool.shutdown()
            later = time.perf_counter() - self._started if records else 0.0
            self._report = CompileReport(
                records=(*self._first.records, *records),
                wall_seconds=self._first.wall_seconds + later,
            )
        return self._report


def cache_directory(setting: str | None) -> Path | None:
    """Where EngineConfig.compilation_cache_dir keeps programs; None for "off"."""
    if setting == "off":
        return None
    return user_cache_dir() / "compiled" if setting is None else Path(setting)


@dataclass(slots=True)
class EventCount:
    """How often an event has happened since counting began."""

    count: int = 0


@contextmanager
def count_events(event: str, *, on_this_thread: bool = False) -> Iterator[EventCount]:
    """Count a jax.monitoring event while the block runs, on all threads or on the caller's."""
    seen = EventCount()
    thread = threading.get_ident() if on_this_thread else None

    def counts(name: str) -> bool:
        return name == wanted and thread in (None, threading.get_ident())

    wanted = event

    def on_event(event: str, **kwargs: str | int) -> None:
        seen.count += counts(event)

    def on_duration(event: str, duration_secs: float, **kwargs: str | int) -> None:
        seen.count += counts(event)

    monitoring.register_event_listener(on_event)
    monitoring.register_event_duration_secs_listener(on_duration)
    try:
        yield seen
    finally:
        monitoring.unregister_event_listener(on_event)
        monitoring.unregister_event_duration_listener(on_duration)


def count_compilations() -> AbstractContextManager[EventCount]:
    """A context that counts the programs which XLA compiles in this process."""
    return count_events(_COMPILE_EVENT)


class CompilationCount:
    """Counts the programs that XLA compiles in this process until it is stopped."""

    def __init__(self) -> None:
        self._counting = ExitStack()
        self._seen = self._counting.enter_context(count_compilations())

    @property
    def count(self) -> int:
        """How many so far."""
        return self._seen.count

    def stop(self) -> None:
        """Count no further; stopping twice is harmless."""
        self._counting.close()


def _read(program: Program, cache: ProgramCache) -> tuple[CompiledProgram, CompileRecord] | None:
    start = time.perf_counter()
    executable = cache.load(program.key, program.devices or jax.local_devices()[:1])
    if executable is None:
        return None
    record = CompileRecord(
        name=program.name,
        is_cached=True,
        trace_seconds=0.0,
        compile_seconds=time.perf_counter() - start,
    )
    return CompiledProgram(program, executable), record


def _compile(program: Program, cache: ProgramCache) -> tuple[CompiledProgram, CompileRecord]:
    start = time.perf_counter()
    jitted = jax.jit(program.function, donate_argnums=program.donated_indices)
    lowered = jitted.lower(*program.arguments.values())
    traced = time.perf_counter()
    with count_events(_CACHE_HIT_EVENT, on_this_thread=True) as jax_cache_hits:
        executable = lowered.compile(compiler_options=compiler_options(jax.default_backend()))
    record = CompileRecord(
        name=program.name,
        is_cached=False,
        trace_seconds=traced - start,
        compile_seconds=time.perf_counter() - traced,
    )
    # What jax read from a cache of its own can't be serialized again: it would load, and fail when
    # called.
    if not jax_cache_hits.count:
        cache.store(program.key, executable)
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

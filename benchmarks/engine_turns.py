"""Several engines in one run: started one after the other, then taking turns."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.engine_process import IDLE_SHARE, EngineProcess
from benchmarks.workload import WorkloadRequest
from fastgen_jax.bench.machine import load_average


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One engine's answer to a workload.

    Attributes:
        engine: its name.
        seconds: wall time of generating, measured in the engine's process.
        answer: all that it told, "output_token_ids" among it.
        others_cpu_seconds: CPU time that the other engines used meanwhile; should be 0.
        load_average: of the machine when the turn began; the turns before count in it.
    """

    engine: str
    seconds: float
    answer: dict[str, Any]
    others_cpu_seconds: float
    load_average: float


class EngineTurns:
    """Engines by name, all ready; while one works, those that burn CPU when idle are stopped.

    ``commands`` start them; ``log_dir`` keeps what they say, None drops it. Use it in a ``with``
    block, which ends the engines.

    Raises:
        RuntimeError: an engine ended; names it and its exit status.
    """

    def __init__(self, commands: Mapping[str, Sequence[str]], *, log_dir: Path | None) -> None:
        self._stack = ExitStack()
        self._engines: dict[str, EngineProcess] = {}
        self.idle_cores: dict[str, float] = {}
        try:
            for name, command in commands.items():
                self._start(name, command, log_dir)
            for engine in self._engines.values():
                self._settle(engine)
        except BaseException:
            self._stack.close()
            raise

    @property
    def names(self) -> tuple[str, ...]:
        """The engines in their order."""
        return tuple(self._engines)

    @property
    def startup(self) -> dict[str, dict[str, Any]]:
        """What each engine told when it was ready, and the seconds until then."""
        return {
            name: {"startup_seconds": engine.startup_seconds, **engine.ready}
            for name, engine in self._engines.items()
        }

    def run(self, name: str, requests: Sequence[WorkloadRequest]) -> Turn:
        """The named engine's turn."""
        engine = self._engines[name]
        others = [other for other in self._engines.values() if other is not engine]
        load = load_average()
        before = sum(other.cpu_seconds() for other in others)
        with engine.at_work():
            answer = engine.run(requests)
        return Turn(
            engine=name,
            seconds=answer["seconds"],
            answer=answer,
            others_cpu_seconds=sum(other.cpu_seconds() for other in others) - before,
            load_average=load,
        )

    @contextmanager
    def all_paused(self) -> Iterator[None]:
        """Every engine stopped inside the block, for a measurement beside them."""
        running = [engine for engine in self._engines.values() if not engine.is_paused]
        for engine in running:
            engine.pause()
        try:
            yield
        finally:
            for engine in running:
                engine.resume()

    def __enter__(self) -> EngineTurns:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _start(self, name: str, command: Sequence[str], log_dir: Path | None) -> None:
        note(f"starting {name}")
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)
        log = None if log_dir is None else log_dir / f"{name.replace(' ', '_')}.log"
        engine = self._stack.enter_context(EngineProcess(name, command, log=log))
        self._engines[name] = engine
        engine.pause()  # others start or run next
        note(f"{name} ready after {engine.startup_seconds:.1f} s")

    def _settle(self, engine: EngineProcess) -> None:
        """Only an engine that keeps cores busy when idle stays paused."""
        engine.resume()
        share = engine.idle_share()
        if share >= IDLE_SHARE:
            engine.pause()
        self.idle_cores[engine.name] = round(share, 3)
        note(f"{engine.name} keeps {share:.3f} cores busy when idle")


def note(text: str) -> None:
    """A line on how far a run is, beside its results."""
    print(text, file=sys.stderr, flush=True)

"""Seconds from starting a process to its first token, and what importing the package takes.

Cold: no compiled program and nothing else that an earlier start left in the user's cache, but the
model's file, and Python's own bytecode. Warm: what one earlier start left. Both take turns, each
time in a fresh process; the files come from the page cache, as they do where a process is started
again. The clock runs in this process, from before the other one exists until its line arrives.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from benchmarks.engine_turns import note
from benchmarks.measurement import write_measurement
from fastgen_jax.bench.machine import load_average
from fastgen_jax.bench.spread import Spread
from fastgen_jax.models.sources import resolve_model

IMPORTS = {
    "nothing": "pass",
    "fastgen_jax": "import fastgen_jax",
    "fastgen_jax.LLM": "from fastgen_jax import LLM",
}


class ImportTime(NamedTuple):
    """One module of ``-X importtime``, in microseconds; ``own`` leaves out what it imports."""

    module: str
    own: int
    cumulative: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One process from its start to its first token.

    Attributes:
        kind: "cold", "cold, in background" or "warm".
        seconds: from before the process existed to the arrival of its first token.
        stages: seconds of the process's own clock: "imported", "ready", "first_token".
    """

    kind: str
    seconds: float
    stages: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartUp:
    """Starts processes in turns, prints the times, writes every number."""

    model: str = "smollm2-135m-instruct"
    """A built-in name, a directory, a .gguf file or a Hub id."""
    dtype: str = "bfloat16"
    """"float32" or "bfloat16"."""
    rounds: int = 5
    """Starts of each kind."""
    import_rounds: int = 9
    """Imports of each kind."""
    top_modules: int = 15
    """Modules listed, those that take longest by themselves."""
    quick: bool = False
    """1 start of each kind: does it work at all?"""
    out: Path = Path("benchmarks/results/start_up.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Measure, print, write."""
        load_at_start = load_average()
        rounds, import_rounds = (1, 1) if self.quick else (self.rounds, self.import_rounds)
        path = resolve_model(self.model, progress=False)
        imports = time_imports(import_rounds)
        modules = {
            name: top_modules(import_times(statement), self.top_modules)
            for name, statement in IMPORTS.items()
            if name != "nothing"
        }
        starts = self._starts(path, rounds)
        kinds = dict.fromkeys(one.kind for one in starts)
        summary = {
            kind: asdict(Spread.of([one.seconds for one in starts if one.kind == kind]))
            for kind in kinds
        }
        for kind, one in summary.items():
            print(
                f"{kind:<22}{one['median']:7.2f} s to the first token "
                f"({one['low']:.2f} to {one['high']:.2f})"
            )
        for name, one in imports.items():
            print(f"importing {name:<18}{one.median:7.2f} s, interpreter included")
        write_measurement(
            self.out,
            settings={"dtype": self.dtype, "rounds": rounds, "quick": self.quick},
            load_at_start=load_at_start,
            numbers={
                "first_token_seconds": summary,
                "starts": [asdict(one) for one in starts],
                "process_seconds_with_import": {n: asdict(one) for n, one in imports.items()},
                "import_seconds": import_seconds(imports),
                "top_modules": {
                    name: [one._asdict() for one in top] for name, top in modules.items()
                },
            },
        )

    def _starts(self, path: Path, rounds: int) -> list[Start]:
        starts: list[Start] = []
        with tempfile.TemporaryDirectory() as base:
            warm = Path(base) / "warm"
            self._start(path, "fills the warm cache", warm)
            for number in range(rounds):
                cold, background = Path(base) / f"cold{number}", Path(base) / f"late{number}"
                starts.append(self._start(path, "cold", cold))
                starts.append(self._start(path, "warm", warm))
                starts.append(self._start(path, "cold, in background", background))
                starts.append(self._start(path, "warm", warm))
        return starts

    def _start(self, path: Path, kind: str, cache: Path) -> Start:
        command = [sys.executable, "-m", "benchmarks.first_token", "--model", str(path)]
        command += ["--dtype", self.dtype]
        command += ["--in-background"] if kind == "cold, in background" else []
        environment = {**user_environment(os.environ), "XDG_CACHE_HOME": str(cache)}
        begin = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            seconds = time.perf_counter() - begin
        if process.returncode != 0 or not line:
            raise RuntimeError(f"a start ended with status {process.returncode} and {line!r}")
        one = Start(kind=kind, seconds=seconds, stages=json.loads(line)["stages"])
        note(f"{kind}: {seconds:.2f} s")
        return one


def user_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment as a user has it: Python keeps its bytecode, and finds it again."""
    return {name: value for name, value in environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def time_imports(rounds: int) -> dict[str, Spread]:
    """Seconds of whole processes that import nothing, or a part of the package, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for number in range(rounds + 1):  # the first one writes the bytecode
        for name, statement in IMPORTS.items():
            begin = time.perf_counter()
            _python("-c", statement)
            if number > 0:
                seconds[name].append(time.perf_counter() - begin)
    return {name: Spread.of(values) for name, values in seconds.items()}


def import_seconds(imports: Mapping[str, Spread]) -> dict[str, float]:
    """Median seconds that each import adds to a process that imports nothing."""
    bare = imports["nothing"].median
    return {name: one.median - bare for name, one in imports.items() if name != "nothing"}


def import_times(statement: str) -> list[ImportTime]:
    """Every module that the statement imports, as Python's ``-X importtime`` has it."""
    return parse_import_times(_python("-X", "importtime", "-c", statement).stderr)


def parse_import_times(text: str) -> list[ImportTime]:
    """The lines ``import time: own | cumulative | module``, other lines left out."""
    times: list[ImportTime] = []
    for line in text.splitlines():
        head, _, rest = line.partition("import time:")
        fields = [field.strip() for field in rest.split("|")]
        if head == "" and len(fields) == 3 and fields[0].isdigit():
            times.append(
                ImportTime(module=fields[2], own=int(fields[0]), cumulative=int(fields[1]))
            )
    return times


def top_modules(times: Sequence[ImportTime], count: int) -> list[ImportTime]:
    """The modules that take longest by themselves, longest first."""
    return sorted(times, key=lambda one: one.own, reverse=True)[:count]


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment: dict[str, Any] = user_environment(os.environ)
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment
    )


if __name__ == "__main__":
    tyro.cli(StartUp, description=__doc__).main()

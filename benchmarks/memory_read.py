"""How fast this machine's memory can be read: the floor under every step that reads the weights.

Each of a few threads adds up an array of its own, together far larger than the caches, in passes
that begin at once. Where a C++ compiler is found, a small program does that; elsewhere numpy's sum
in as many threads, which is slower than the memory on some machines. The result says which.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from benchmarks.llama_tools import num_threads
from benchmarks.measurement import write_measurement
from fastgen_jax.bench.machine import load_average
from fastgen_jax.bench.spread import Spread

SOURCE = Path(__file__).with_name("memory_read.cc")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-pthread")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRate:
    """Bytes per second that all threads together read.

    Attributes:
        bytes_per_second: over all passes; the median is the rate, the highest one the machine's
            best moment.
        method: "c++" or "numpy".
        threads: that read at once.
        mebibytes: of all arrays together.
    """

    bytes_per_second: Spread
    method: Literal["c++", "numpy"]
    threads: int
    mebibytes: int

    @property
    def rate(self) -> float:
        """The median, in bytes per second."""
        return self.bytes_per_second.median


def measure_memory_read(*, threads: int, mebibytes: int = 1024, passes: int = 25) -> ReadRate:
    """The rate with a compiled program where a compiler is there, else with numpy."""
    compiler = find_compiler()
    size = mebibytes << 20
    rates = (
        _read_with_numpy(size, threads, passes)
        if compiler is None
        else _read_compiled(compiler, size, threads, passes)
    )
    return ReadRate(
        bytes_per_second=Spread.of(rates),
        method="numpy" if compiler is None else "c++",
        threads=threads,
        mebibytes=mebibytes,
    )


def find_compiler(names: Sequence[str] = COMPILERS) -> str | None:
    """The first C++ compiler found; None where there is none."""
    return next((path for name in names if (path := shutil.which(name)) is not None), None)


def _read_compiled(compiler: str, size: int, threads: int, passes: int) -> list[float]:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "memory_read"
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(program)], check=True)
        command = [str(program), str(size), str(threads), str(passes)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(line) for line in done.stdout.split()]


def _read_with_numpy(size: int, threads: int, passes: int) -> list[float]:
    arrays = [np.full(size // threads // 8, thread + 1.0) for thread in range(threads)]
    num_bytes = sum(array.nbytes for array in arrays)
    rates: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        for number in range(passes + 1):
            start = time.perf_counter()
            sums = list(pool.map(np.sum, arrays))  # numpy lets go of the interpreter meanwhile
            seconds = time.perf_counter() - start
            assert sums == [array.size * array[0] for array in arrays]
            if number > 0:
                rates.append(num_bytes / seconds)
    return rates


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRead:
    """Measures the rate, prints it, and writes every number."""

    mebibytes: int = 1024
    """Of all arrays together; many times the caches."""
    passes: int = 101
    """Timed readings of all arrays."""
    quick: bool = False
    """Small arrays, three passes: does it work at all?"""
    out: Path = Path("benchmarks/results/memory_read.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Measure with one thread and with all, print, write."""
        load_at_start = load_average()
        mebibytes, passes = (64, 3) if self.quick else (self.mebibytes, self.passes)
        counts = sorted({1, num_threads()})
        rates = [
            measure_memory_read(threads=count, mebibytes=mebibytes, passes=passes)
            for count in counts
        ]
        for one in rates:
            low, high = one.bytes_per_second.low, one.bytes_per_second.high
            print(
                f"{one.threads} threads, {one.method}: {one.rate / 1e9:.1f} GB/s "
                f"({low / 1e9:.1f} to {high / 1e9:.1f})"
            )
        write_measurement(
            self.out,
            settings={"mebibytes": mebibytes, "passes": passes, "quick": self.quick},
            load_at_start=load_at_start,
            numbers={"rates": [asdict(one) for one in rates]},
        )


if __name__ == "__main__":
    tyro.cli(MemoryRead, description=__doc__).main()

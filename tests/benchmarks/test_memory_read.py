from __future__ import annotations

import subprocess

import numpy as np
import pytest

from benchmarks import memory_read
from benchmarks.memory_read import FLAGS, SOURCE, find_compiler, measure_memory_read


def test_rates_without_a_compiler_come_from_numpy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_read, "find_compiler", lambda: None)
    one = measure_memory_read(threads=2, mebibytes=8, passes=3)
    assert one.method == "numpy"
    assert one.bytes_per_second.count == 3
    assert 1e8 < one.rate < 1e13


def test_numpy_reads_every_array_in_every_pass(monkeypatch: pytest.MonkeyPatch):
    summed: list[int] = []
    plain = np.sum

    def count(values: np.ndarray) -> float:
        summed.append(values.nbytes)
        return plain(values)

    monkeypatch.setattr(np, "sum", count)
    memory_read._read_with_numpy(1 << 20, 2, 3)
    assert summed == [1 << 19] * 8  # 3 passes and one before, of 2 arrays


@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_rates_with_a_compiler_come_from_the_program():
    one = measure_memory_read(threads=2, mebibytes=8, passes=3)
    assert one.method == "c++"
    assert one.bytes_per_second.count == 3
    assert 1e8 < one.rate < 1e13


@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_the_program_compiles_without_warnings_and_refuses_nonsense(tmp_path):
    compiler, program = find_compiler(), tmp_path / "memory_read"
    assert compiler is not None
    flags = [*FLAGS, "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(program)], check=True)
    for arguments in ([], ["1024", "0", "1"], ["8", "2", "1"], ["1024", "1", "0"]):
        assert subprocess.run([program, *arguments], check=False).returncode == 2


def test_no_compiler_is_none():
    assert find_compiler(("no-such-compiler-anywhere",)) is None

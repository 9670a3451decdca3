"""The library of native kernels: how it is built, found and refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pallas_kernels import native
from pallas_kernels.native import build, library

X86_FLAGS = "fpu sse2 avx2 fma f16c"


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Pretends to be a processor with these features, whose libraries lie in a folder."""

    def pretend(features: str, folder: Path, machine: str = "x86_64") -> None:
        monkeypatch.setattr(build.platform, "machine", lambda: machine)
        monkeypatch.setattr(build, "processor_features", lambda: frozenset(features.split()))
        monkeypatch.setattr(library, "library_path", lambda name: build.library_path(name, folder))
        monkeypatch.setattr(library, "is_current", lambda: build.is_current(folder))
        library._find.cache_clear()

    yield pretend
    library._find.cache_clear()


def put_libraries(folder: Path, *names: str, digest: str | None = None) -> None:
    for name in names:
        build.library_path(name, folder).touch()
    (folder / "digest.txt").write_text(build.source_digest() if digest is None else digest)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (X86_FLAGS, "avx2"),
        (X86_FLAGS + " avx512f avx512bw avx512dq avx512vl", "avx512"),
        (X86_FLAGS + " avx512f avx512bw avx512dq", "avx2"),
        (X86_FLAGS + " avx512f avx512bw avx512dq avx512vl avx512_bf16 avx512_vnni", "avx512_bf16"),
    ],
)
def test_the_best_build_that_the_processor_can_run_is_taken(
    processor, tmp_path: Path, features: str, expected: str
) -> None:
    put_libraries(tmp_path, "avx2", "avx512", "avx512_bf16")
    processor(features, tmp_path)
    assert library._find() == (expected, None)


def test_a_build_that_is_missing_is_passed_over(processor, tmp_path: Path) -> None:
    put_libraries(tmp_path, "avx2")
    processor(X86_FLAGS + " avx512f avx512bw avx512dq avx512vl", tmp_path)
    assert library._find() == ("avx2", None)


@pytest.mark.parametrize(
    ("features", "machine", "built", "digest", "reason"),
    [
        ("fpu sse2", "x86_64", ("avx2",), None, "no AVX2"),
        (X86_FLAGS, "x86_64", (), None, "weren't built"),
        (X86_FLAGS, "x86_64", ("avx2",), "old", "other sources"),
        (X86_FLAGS, "riscv64", ("avx2",), None, "riscv64"),
    ],
)
def test_what_stands_in_the_way_is_said(
    processor,
    tmp_path: Path,
    features: str,
    machine: str,
    built: tuple[str, ...],
    digest: str | None,
    reason: str,
) -> None:
    put_libraries(tmp_path, *built, digest=digest)
    processor(features, tmp_path, machine)
    assert reason in (native.native_obstacle() or "")


def test_a_compiler_that_isnt_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    assert "no C++ compiler" in (build.obstacle() or "")
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler"):
        build.build()


def test_cxx_names_the_compiler(tmp_path: Path) -> None:
    compiler = tmp_path / "my-c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    assert build.find_compiler({"CXX": str(compiler)}) == str(compiler)
    assert build.find_compiler({"CXX": str(tmp_path / "none")}) is None


@pytest.mark.skipif(build.obstacle() is not None, reason=str(build.obstacle()))
def test_what_the_compiler_says_of_a_mistake_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "broken" / "cpu.cc"
    source.parent.mkdir()
    source.write_text("int main() { return nothing_of_this_name; }\n")
    monkeypatch.setattr(build, "kernel_sources", lambda: (source,))
    monkeypatch.setattr(build, "shared_sources", lambda: ())
    with pytest.raises(RuntimeError, match="nothing_of_this_name"):
        build.build(tmp_path / "lib")
    assert not build.is_current(tmp_path / "lib")


def test_another_source_needs_another_build(tmp_path: Path) -> None:
    put_libraries(tmp_path, "avx2", digest="of something else")
    assert not build.is_current(tmp_path)
    put_libraries(tmp_path, "avx2")
    assert build.is_current(tmp_path)


def test_the_build_needs_no_jax_to_be_imported() -> None:
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('b', {str(build.__file__)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['b'] = module\n"
        "spec.loader.exec_module(module)\n"
        "module.source_digest(), module.obstacle()\n"
        "print('jax' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "False"


def test_threads_must_be_a_positive_number() -> None:
    with pytest.raises(ValueError, match="num_threads=0"):
        native.set_num_threads(0)


@pytest.mark.skipif(native.native_obstacle() is not None, reason=str(native.native_obstacle()))
def test_the_pool_has_the_threads_it_was_given() -> None:
    loaded = native.native_library()
    assert loaded is not None
    before = loaded.functions.fastgen_num_threads()
    try:
        for count in (1, 3, 2):
            native.set_num_threads(count)
            assert loaded.functions.fastgen_num_threads() == count
    finally:
        native.set_num_threads(before)

"""Compiles the native CPU kernels: a shared library for each instruction set.

The packaging hook calls it when the project is installed; ``python -m pallas_kernels.native.build``
does the same by hand, with ``--all`` for every processor. It needs a C++17 compiler and the headers
that jaxlib ships, and nothing of this package, so that it can be loaded by its path alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the folder pallas_kernels
LIBRARIES = ROOT / "native" / "lib"

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-pthread")
# A build that fails on one of these is no worse than a machine without a compiler.
TIMEOUT_SECONDS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionSet:
    """One build of the kernels: what the compiler may use, and what a processor must have.

    Attributes:
        name: of the library's file.
        flags: for the compiler.
        features: the processor's, as /proc/cpuinfo calls them.
    """

    name: str
    flags: tuple[str, ...]
    features: frozenset[str]


_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")


def _x86(name: str, features: Sequence[str], cpuinfo: Sequence[str] = ()) -> InstructionSet:
    return InstructionSet(
        name=name,
        flags=tuple(f"-m{feature}" for feature in features),
        features=frozenset(cpuinfo or features),
    )


# The best first.
INSTRUCTION_SETS: Mapping[str, tuple[InstructionSet, ...]] = {
    "x86_64": (
        _x86(
            "avx512_bf16",
            (*_AVX512, "avx512bf16", "avx512vnni"),
            (*_AVX512, "avx512_bf16", "avx512_vnni"),
        ),
        _x86("avx512", _AVX512),
        _x86("avx2", _AVX2),
    ),
    "arm64": (InstructionSet(name="neon", flags=(), features=frozenset()),),
}


def instruction_sets() -> tuple[InstructionSet, ...]:
    """Those that there are builds for on this kind of machine, the best first."""
    machine = platform.machine().lower()
    name = {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)
    return INSTRUCTION_SETS.get(name, ())


def fitting_instruction_sets() -> tuple[InstructionSet, ...]:
    """Those that this processor has, the best first."""
    features = processor_features()
    return tuple(kind for kind in instruction_sets() if kind.features <= features)


def processor_features() -> frozenset[str]:
    """The processor's abilities as Linux names them; on other systems none are known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return frozenset(flags.partition(":")[2].split())


def library_path(name: str, folder: Path = LIBRARIES) -> Path:
    """Where the library of an instruction set lies."""
    return folder / f"cpu_{name}.so"


def kernel_sources() -> tuple[Path, ...]:
    """What is compiled anew for every instruction set."""
    names = ("cpu", "cpu_codes", "cpu_pack")
    return tuple(sorted(path for name in names for path in ROOT.glob(f"*/{name}.cc")))


def shared_sources() -> tuple[Path, ...]:
    """What is compiled once: threads, and the bindings to XLA."""
    return (ROOT / "native" / "bindings.cc", ROOT / "native" / "thread_pool.cc")


def source_digest() -> str:
    """A digest of everything that the libraries are made of."""
    digest = hashlib.sha256(repr(FLAGS).encode())
    for path in sorted([*ROOT.glob("*/*.cc"), *ROOT.glob("*/*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def find_compiler(environ: Mapping[str, str] = os.environ) -> str | None:
    """The C++ compiler: $CXX where that is set, else the first on the PATH."""
    names = [environ["CXX"]] if environ.get("CXX") else COMPILERS
    return next((found for name in names if (found := shutil.which(name))), None)


def header_folder() -> Path | None:
    """Where jaxlib keeps XLA's headers; None without jaxlib."""
    spec = importlib.util.find_spec("jaxlib")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "include"
    return folder if (folder / "xla" / "ffi" / "api" / "ffi.h").is_file() else None


def obstacle() -> str | None:
    """Why nothing can be built here; None where it can."""
    if not instruction_sets():
        return f"there are no kernels for {platform.machine()}"
    if sys.platform not in ("linux", "darwin"):
        return f"the kernels aren't built on {sys.platform}"
    if find_compiler() is None:
        return "there is no C++ compiler (c++, g++ or clang++ on the PATH, or named by CXX)"
    if header_folder() is None:
        return "jaxlib isn't installed beside the build, and its headers are needed"
    return None


def build(
    folder: Path = LIBRARIES, kinds: Sequence[InstructionSet] | None = None
) -> tuple[Path, ...]:
    """The libraries and their stamp, compiled into ``folder`` where they aren't there and current.

    ``kinds`` are those to build; None: the best that this processor has.

    Raises:
        RuntimeError: nothing can be built here, or the compiler failed; the message says why.
    """
    reason = obstacle()
    if reason is not None:
        raise RuntimeError(reason)
    kinds = fitting_instruction_sets()[:1] if kinds is None else kinds
    if not kinds:
        raise RuntimeError("this processor has no AVX2")
    paths = tuple(library_path(kind.name, folder) for kind in kinds)
    if not is_current(folder) or not all(path.is_file() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("cpu_*.so"):  # of other sources
            path.unlink()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _compile_all(Path(scratch), kinds, folder)
        _stamp(folder).write_text(source_digest())
    return (*paths, _stamp(folder))


def is_current(folder: Path = LIBRARIES) -> bool:
    """True when the libraries in a folder were made of these sources."""
    stamp = _stamp(folder)
    return stamp.is_file() and stamp.read_text() == source_digest()


def _stamp(folder: Path) -> Path:
    return folder / "digest.txt"


def _compile_all(scratch: Path, kinds: Sequence[InstructionSet], folder: Path) -> None:
    compiler, headers = find_compiler(), header_folder()
    if compiler is None or headers is None:
        raise RuntimeError(obstacle())
    common = [compiler, *FLAGS, f"-I{ROOT}", f"-isystem{headers}"]

    def compile_one(source: Path, name: str, flags: Sequence[str]) -> Path:
        target = scratch / f"{source.parent.name}_{source.stem}_{name}.o"
        _run([*common, *flags, "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        # The bindings only hand over pointers, and their headers are slow to optimize.
        shared = [
            pool.submit(compile_one, source, "shared", ("-O1",)) for source in shared_sources()
        ]
        kernels = {
            kind.name: [
                pool.submit(compile_one, source, kind.name, kind.flags)
                for source in kernel_sources()
            ]
            for kind in kinds
        }
        objects = [str(future.result()) for future in shared]
        for kind in kinds:
            path = library_path(kind.name, folder)
            own = [str(future.result()) for future in kernels[kind.name]]
            linked = scratch / path.name
            _run([compiler, "-shared", "-pthread", *objects, *own, "-o", str(linked)])
            linked.replace(path)  # whole or not at all: another process may be loading it


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"the compiler took more than {TIMEOUT_SECONDS} s") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    for built in build(kinds=instruction_sets() if "--all" in sys.argv else None):
        print(built)

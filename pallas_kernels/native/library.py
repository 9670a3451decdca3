"""The library of native kernels that fits this processor, loaded once."""

from __future__ import annotations

import ctypes
import functools
import platform
from dataclasses import dataclass

import jax

from pallas_kernels.native.build import (
    fitting_instruction_sets,
    instruction_sets,
    is_current,
    library_path,
)

TARGETS = ("fastgen_linear", "fastgen_attention", "fastgen_kv_write", "fastgen_zeros")


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeLibrary:
    """A loaded library whose kernels are registered with XLA.

    Attributes:
        instruction_set: what it was compiled for.
        functions: its plain C functions.
    """

    instruction_set: str
    functions: ctypes.CDLL


@functools.cache
def native_library() -> NativeLibrary | None:
    """The library, loaded and registered; None where ``native_obstacle`` says why."""
    name, _ = _find()
    if name is None:
        return None
    functions = ctypes.CDLL(str(library_path(name)))
    functions.fastgen_set_num_threads.argtypes = [ctypes.c_int]
    functions.fastgen_set_num_threads.restype = None
    functions.fastgen_num_threads.restype = ctypes.c_int
    for target in TARGETS:
        jax.ffi.register_ffi_target(
            target, jax.ffi.pycapsule(getattr(functions, target)), platform="cpu"
        )
    return NativeLibrary(instruction_set=name, functions=functions)


def native_obstacle() -> str | None:
    """Why there are no native kernels here; None where there are."""
    return _find()[1]


def set_num_threads(num_threads: int) -> None:
    """Run later kernels on so many threads, the calling one included.

    Raises:
        ValueError: not a positive number.
    """
    if num_threads < 1:
        raise ValueError(f"num_threads={num_threads}: must be at least 1")
    library = native_library()
    if library is not None:
        library.functions.fastgen_set_num_threads(num_threads)


@functools.cache
def _find() -> tuple[str | None, str | None]:
    """The name of the best build for this processor, or why there is none."""
    if not instruction_sets():
        return None, f"there are none for {platform.machine()}"
    fitting = [kind.name for kind in fitting_instruction_sets()]
    if not fitting:
        return None, "this processor has no AVX2"
    built = [name for name in fitting if library_path(name).is_file()]
    if not built:
        return None, "they weren't built: no C++ compiler was found when the package was installed"
    if not is_current():
        return None, "they were built of other sources: install the package again"
    return built[0], None

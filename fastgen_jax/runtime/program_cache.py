"""Compiled programs kept on disk between processes, so that a second start traces nothing.

JAX's own persistent cache spares the compiler but not the tracing, which is seconds for a few
steps. Here a program is found by what it was made from: this package's source, the shapes of its
arguments, its static description, and the versions and machine it was compiled for.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import platform
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax import Device
from jax.experimental import serialize_executable

import fastgen_jax
import pallas_kernels
from pallas_kernels.native import processor_features

_SOURCES = frozenset({".py", ".cc", ".h"})  # programs call the native kernels by name


class ProgramCache:
    """A directory of executables; None keeps nothing.

    Its files are pickles: the directory must be as trustworthy as the program itself.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    def has(self, key: str) -> bool:
        """True when an executable is stored under the key."""
        return self._directory is not None and self._path(key).is_file()

    def load(
        self,
        key: str,
        devices: Sequence[Device],  # pyright: ignore[reportInvalidTypeForm]
    ) -> jax.stages.Compiled | None:
        """The executable stored under the key, for these devices, in the order of its mesh.

        None where there is none that this jax can read.
        """
        if self._directory is None:
            return None
        try:
            payload, in_tree, out_tree = pickle.loads(self._path(key).read_bytes())
            return serialize_executable.deserialize_and_load(
                payload, in_tree, out_tree, execution_devices=devices
            )
        except FileNotFoundError:
            return None
        except Exception:  # a file cut or from another world only costs a compilation
            self._path(key).unlink(missing_ok=True)
            return None

    def store(self, key: str, executable: jax.stages.Compiled) -> None:
        """Keep an executable; two processes may store the same one at once."""
        if self._directory is None:
            return
        data = pickle.dumps(serialize_executable.serialize(executable))
        handle, name = tempfile.mkstemp(dir=self._directory)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).replace(self._path(key))

    def _path(self, key: str) -> Path:
        assert self._directory is not None
        return self._directory / f"{key}.program"


def program_key(name: str, description: object, arguments: Any, donated: tuple[int, ...]) -> str:
    """The name of everything a program's machine code depends on, as a hexadecimal digest."""
    leaves, tree = jax.tree.flatten(arguments)
    shapes = [(leaf.shape, str(leaf.dtype)) for leaf in leaves]
    parts = (name, repr(description), str(tree), shapes, donated, _environment())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _environment() -> tuple[str, ...]:
    device = jax.local_devices()[0]
    return (
        _source_digest(),
        jax.__version__,
        version("jaxlib"),
        device.platform,
        device.device_kind,
        str(jax.local_device_count()),
        platform.machine(),
        cpu_flags(),
        os.environ.get("XLA_FLAGS", ""),
        str(jax.config.jax_default_matmul_precision),
        str(jax.config.jax_enable_x64),
    )


@cache
def _source_digest() -> str:
    digest = hashlib.sha256()
    for package in (fastgen_jax, pallas_kernels):
        for root in package.__path__:
            files = (path for path in Path(root).rglob("*") if path.suffix in _SOURCES)
            for path in sorted(files):
                digest.update(str(path.relative_to(root)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def cpu_flags() -> str:
    """What the processor can do, or its name where the system doesn't tell."""
    return " ".join(sorted(processor_features())) or platform.processor()

"""Writing snapshots: a checkpoint's weights in our layout, read again in a fraction of the time."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fastgen_jax.errors import ConfigError
from fastgen_jax.models.weights.checkpoint import Checkpoint
from fastgen_jax.models.weights.hub import TOKENIZER_FILES
from fastgen_jax.models.weights.orbax_arrays import save_arrays
from fastgen_jax.models.weights.packing import DTYPES, dense_shapes
from fastgen_jax.models.weights.snapshot import Snapshot
from fastgen_jax.models.weights.snapshot_manifest import (
    GGUF_TOKENIZER_FILE,
    TOKENIZER_DIRECTORY,
    Manifest,
    file_sizes,
    is_snapshot,
    write_manifest,
)

# Arrays are written, and read again, so many bytes at a time, or as many as the largest of them has
# where that is less; one by one where they are larger.
PART_BYTES = 256 << 20


class SnapshotWriter:
    """Writes one checkpoint as a snapshot of ``num_bytes`` of weights, in ``dtype``.

    ``dtype`` is "float32" or "bfloat16"; where None is given, the smaller one that holds all that
    is stored without loss.
    """

    def __init__(self, *, checkpoint: Checkpoint | Snapshot, dtype: str | None) -> None:
        self.dtype = dtype or checkpoint.lossless_dtype
        shapes = dense_shapes(checkpoint.config, self.dtype).values()
        sizes = [shape.size * shape.dtype.itemsize for shape in shapes]
        self.num_bytes = sum(sizes)
        self._part_bytes = min(PART_BYTES, max(sizes))
        self._checkpoint = checkpoint

    def write(self, directory: Path, *, replace: bool, on_weight: Callable[[int], object]) -> None:
        """Make the snapshot ``directory``, which appears when it is complete.

        Whatever goes wrong before leaves no trace of it, and an older one in its place.
        ``on_weight`` hears the bytes of arrays that were written.

        Raises:
            ConfigError: ``directory`` exists and ``replace`` is False, or it isn't a snapshot; or
                it can't be written.
        """
        _check_place(directory, replace)
        try:
            with _scratch(directory) as scratch:
                self._fill(scratch, on_weight)
                _put(scratch, directory)
        except OSError as error:
            raise ConfigError(
                f"the snapshot can't be written there: {error}",
                field="directory",
                value=str(directory),
                remedy="free some space or name another directory",
            ) from error

    def _fill(self, scratch: Path, on_weight: Callable[[int], object]) -> None:
        parts: dict[str, tuple[str, ...]] = {}
        for number, arrays in enumerate(self._parts()):
            part = f"weights/{number:05}"
            save_arrays(scratch / part, arrays)
            parts[part] = tuple(arrays)
            on_weight(sum(values.nbytes for values in arrays.values()))
            arrays.clear()  # before the next ones are read
        self._write_tokenizer(scratch / TOKENIZER_DIRECTORY)
        manifest = Manifest(
            model=self._checkpoint.config,
            dtype=self.dtype,
            parts=parts,
            files=file_sizes(scratch),
            source={
                "name": Path(self._checkpoint.source).name,
                "format": self._checkpoint.format,
                "num_bytes": self._checkpoint.num_bytes,
            },
        )
        write_manifest(scratch, manifest)

    def _parts(self) -> Iterator[dict[str, np.ndarray]]:
        """The arrays, all layers of one name together, as stacks are made of them."""
        part: dict[str, np.ndarray] = {}
        size = 0
        for name, values in self._checkpoint.tensors_by_stack(DTYPES[self.dtype]):
            if part and size + values.nbytes > self._part_bytes:
                yield part
                part, size = {}, 0
            part[name] = values
            size += values.nbytes
        yield part

    def _write_tokenizer(self, directory: Path) -> None:
        directory.mkdir()
        fields = self._checkpoint.tokenizer_fields
        if fields is not None:
            own = {name: value for name, value in fields.items() if name.startswith("tokenizer.")}
            (directory / GGUF_TOKENIZER_FILE).write_text(json.dumps(own), encoding="utf-8")
            return
        assert self._checkpoint.directory is not None, "a tokenizer is in a file or in a directory"
        for name in TOKENIZER_FILES:
            if (self._checkpoint.directory / name).is_file():
                shutil.copyfile(self._checkpoint.directory / name, directory / name)


def _check_place(directory: Path, replace: bool) -> None:
    if not directory.exists() and not directory.is_symlink():
        return
    if not replace:
        raise ConfigError(
            "exists already",
            field="directory",
            value=str(directory),
            remedy="name another one, or replace it with --force",
        )
    if not is_snapshot(directory):
        raise ConfigError(
            "isn't a snapshot, and nothing else is replaced",
            field="directory",
            value=str(directory),
            remedy="name another one, or remove it yourself",
        )


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A directory beside the one to be; removed with all that is left in it."""
    parent = directory.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=parent, prefix=f".{directory.name}.writing-"))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _put(scratch: Path, directory: Path) -> None:
    """Rename the complete snapshot to its place; an older one goes when the new one is there."""
    scratch.chmod(0o755)  # as mkdir() would; temporary directories are their owner's alone
    if not directory.exists():
        scratch.rename(directory)
        return
    older = Path(tempfile.mkdtemp(dir=scratch.parent, prefix=f".{directory.name}.replaced-"))
    directory.rename(older)
    try:
        scratch.rename(directory)
    except BaseException:
        older.rename(directory)
        raise
    shutil.rmtree(older)

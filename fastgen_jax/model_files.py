"""What is opened of a model, and where its weights come from."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from fastgen_jax.config import EngineConfig, ResolvedConfig
from fastgen_jax.errors import ConfigError
from fastgen_jax.models.weights.checkpoint import Checkpoint, open_checkpoint
from fastgen_jax.models.weights.description import ModelDescription
from fastgen_jax.models.weights.snapshot import Snapshot
from fastgen_jax.models.weights.snapshot_manifest import is_snapshot
from fastgen_jax.parallel.division import kv_head_repeats, with_repeated_kv_heads
from fastgen_jax.parallel.mesh import num_shares
from fastgen_jax.runtime.sharded_weights import ShardedSource, windows_of_tensors
from fastgen_jax.runtime.snapshot_weights import SnapshotSource
from fastgen_jax.runtime.weights import (
    DenseSource,
    PackedSource,
    WeightSource,
    random_stacks,
    random_tensors,
)
from fastgen_jax.text import Tokenizer, load_tokenizer, tokenizer_from_gguf
from pallas_kernels import select_linear_config, target_of

ModelFiles = Checkpoint | Snapshot | ModelDescription


def open_model(path: Path, config: EngineConfig) -> ModelFiles:
    """The model at a path; of a directory whose weights aren't asked for, its description alone.

    Raises:
        ConfigError: it has another format than ``config.load_format``.
        CheckpointError: its files are damaged or incomplete.
        UnsupportedModelError: it needs mathematics that isn't implemented.
    """
    if config.load_format == "dummy" and path.is_dir() and not is_snapshot(path):
        return ModelDescription(path)
    files = open_checkpoint(path)
    if config.load_format not in ("auto", "dummy", files.format):
        files.close()
        raise ConfigError(
            f"{files.source} holds {files.format}",
            field="load_format",
            value=config.load_format,
            remedy=f'use "auto" or "{files.format}"',
        )
    return files


def open_tokenizer(files: ModelFiles) -> Tokenizer | None:
    """The model's tokenizer; None where it has none."""
    if files.tokenizer_fields is not None:
        return tokenizer_from_gguf(files.tokenizer_fields)
    assert files.directory is not None, "a model has metadata or a directory"
    return load_tokenizer(files.directory)


def weight_source(
    files: ModelFiles, config: EngineConfig, resolved: ResolvedConfig, mesh: Mesh | None
) -> WeightSource:
    """The model's weights, or random ones, in the form that the products take."""
    if mesh is not None:
        return _split_source(files, config, resolved, mesh)
    model = files.config
    # A mixture of experts isn't packed: asking for its packing says so where it is quantized.
    if config.quantization is not None or (resolved.is_native and model.moe is None):
        return _packed_source(files, config, resolved)
    if isinstance(files, ModelDescription) or config.load_format == "dummy":
        tensors = random_tensors(model, config.seed)
    elif isinstance(files, Snapshot):
        return SnapshotSource(model=model, dtype=resolved.dtype, snapshot=files)
    else:
        tensors = files.tensors
    return DenseSource(model=model, dtype=resolved.dtype, tensors=tensors)


def _packed_source(
    files: ModelFiles, config: EngineConfig, resolved: ResolvedConfig
) -> WeightSource:
    packing = files.packing(dtype=resolved.dtype, quantization=config.quantization)
    if packing.note is not None and config.show_progress:
        tqdm.write(f"quantization={config.quantization!r}: {packing.note}", file=sys.stderr)
    if isinstance(files, ModelDescription) or config.load_format == "dummy":
        stacks = random_stacks(files.config, packing, config.seed)
    else:
        stacks = partial(files.stacks, packing)
    return PackedSource(
        model=files.config,
        packing=packing,
        linear=select_linear_config(
            target_of(jax.local_devices()[0]),
            implementation=resolved.implementation,
            rounds_rows=resolved.activation_quantization == "int8",
        ),
        stacks=stacks,
    )


def _split_source(
    files: ModelFiles, config: EngineConfig, resolved: ResolvedConfig, mesh: Mesh
) -> WeightSource:
    """For several devices, each of which reads its share."""
    stored, shares = files.config, num_shares(mesh)
    model, repeats = with_repeated_kv_heads(stored, shares), kv_head_repeats(stored, shares)
    if isinstance(files, ModelDescription) or config.load_format == "dummy":
        read = windows_of_tensors(random_tensors(stored, config.seed))
    elif isinstance(files, Snapshot):
        return SnapshotSource(
            model=model, dtype=resolved.dtype, snapshot=files, mesh=mesh, kv_head_repeats=repeats
        )
    else:
        read = files.windows
    return ShardedSource(
        model=model, dtype=resolved.dtype, mesh=mesh, read=read, kv_head_repeats=repeats
    )

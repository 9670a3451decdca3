"""Turning arrays of our layout into packed stacks of layers, on a few threads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from fastgen_jax.errors import ConfigError
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.tensors import MATRICES, is_of_layer, split_name, tensor_shapes
from fastgen_jax.models.weights.aligned import aligned_empty
from fastgen_jax.models.weights.loading import num_threads
from fastgen_jax.models.weights.packing import Stack
from pallas_kernels.linear import PackedMatrix, allocate, pack_values
from pallas_kernels.linear.format import PANEL
from pallas_kernels.linear.native_pack import can_pack_native, pack_native

# Output features that a thread turns and packs at a time.
_LINES = 16 * PANEL
_ENCODINGS = {"float32": "F32", "bfloat16": "BF16"}


def stacks_of_arrays(
    tensors: Iterator[tuple[str, np.ndarray]],
    shapes: Mapping[str, PackedMatrix | jax.ShapeDtypeStruct],
    model: ModelConfig,
) -> Iterator[tuple[str, Stack]]:
    """Yield (name, filled stack) for every one of ``shapes``, each as soon as it is full.

    ``tensors`` are all of the model's. Where those of a stack come one after the other, two stacks
    are in memory at a time. Raises ConfigError for values that a format can't hold.
    """
    missing = {name: 0 for name in shapes}
    for name in tensor_shapes(model):
        missing[split_name(name)[0]] += 1
    stacks: dict[str, Stack] = {}
    with ThreadPoolExecutor(num_threads(), thread_name_prefix="fastgen-weights") as executor:
        for full_name, values in tensors:
            name, layer = split_name(full_name)
            if name not in stacks:
                stacks[name] = _empty(shapes[name])
            for piece in _start(full_name, values, stacks[name], layer, executor):
                piece.result()
            missing[name] -= 1
            if not missing[name]:
                yield name, stacks.pop(name)


def _empty(shape: PackedMatrix | jax.ShapeDtypeStruct) -> Stack:
    if isinstance(shape, PackedMatrix):
        return allocate(shape, aligned_empty)
    return aligned_empty(shape.shape, np.dtype(shape.dtype))


def _start(
    full_name: str, values: np.ndarray, stack: Stack, layer: int, executor: ThreadPoolExecutor
) -> list[Future[None]]:
    if not isinstance(stack, PackedMatrix):
        place: Any = stack[layer] if is_of_layer(full_name) else stack
        place[...] = values
        return []
    lines = values.T if split_name(full_name)[0] in MATRICES else values
    return [
        executor.submit(_pack, lines[first : first + _LINES], stack, layer, first)
        for first in range(0, len(lines), _LINES)
    ]


def _pack(lines: np.ndarray, into: PackedMatrix, layer: int, first: int) -> None:
    # numpy copies its own types with strides several times faster than bfloat16.
    bits = np.ascontiguousarray(lines.view(f"u{lines.dtype.itemsize}"))
    encoding = _ENCODINGS[lines.dtype.name]
    is_moved_only = encoding == "F32" and into.format == "float32"
    if not is_moved_only and can_pack_native(encoding, into.format):
        raw = bits.view(np.uint8)
        if pack_native(raw, encoding, into, layer=layer, first=first, num_threads=1):
            return
    try:
        pack_values(bits.view(lines.dtype), into, layer=layer, first=first)
    except ValueError as error:
        raise ConfigError(
            f"the weights can't be kept so: {error}",
            field="quantization",
            value=into.format,
            remedy='leave it out, or use "int8"',
        ) from error

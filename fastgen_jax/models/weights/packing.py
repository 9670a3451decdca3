"""How a model's weights are kept when they are packed: a format for each matrix."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np

from fastgen_jax.config import QUANTIZATIONS
from fastgen_jax.errors import ConfigError, UnsupportedModelError
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.tensors import (
    EMBEDDINGS,
    MATRICES,
    is_of_layer,
    is_wide,
    split_name,
    tensor_shapes,
)
from pallas_kernels.linear import FORMATS, FormatName, PackedMatrix

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

# GGUF's encodings that can be kept as they are.
PACKED_ENCODINGS: Mapping[str, FormatName] = {"Q8_0": "q8_0", "Q4_0": "q4_0", "Q4_1": "q4_1"}
_DENSE_ENCODINGS = frozenset({"F32", "F16", "BF16"})

Stack = PackedMatrix | np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """A format for each matrix of a decoder.

    Attributes:
        dtype: of norms, and of matrices that aren't quantized: "float32" or "bfloat16".
        formats: by stack: the layers' matrices, "embed", and "head" where it isn't tied to the
            embedding.
        note: one line about matrices that couldn't be kept as was asked for; None if there are
            none.
    """

    dtype: str
    formats: Mapping[str, FormatName]
    note: str | None = None


def choose_packing(
    model: ModelConfig,
    *,
    dtype: str,
    quantization: str | None,
    encodings: Mapping[str, Collection[str]] | None = None,
) -> Packing:
    """The format of every stack.

    None keeps all in ``dtype``, "int8" quantizes everything to int8, "int4" the layers to int4 and
    embedding and head to int8; "gguf" keeps Q8_0, Q4_0 and Q4_1 as they are stored, where all
    layers of a matrix are stored alike, and everything else in ``dtype``.

    Args:
        model: shape of the decoder.
        dtype: "float32" or "bfloat16".
        quantization: None, "int8", "int4" or "gguf".
        encodings: by stack, how its layers are stored in a file; needed for "gguf" alone.

    Raises:
        ConfigError: an unknown dtype or quantization, or "gguf" where nothing is stored packed.
    """
    if dtype not in DTYPES:
        raise ConfigError(
            "weights can't be packed in this type",
            field="dtype",
            value=dtype,
            remedy=f"use {' or '.join(DTYPES)}",
        )
    if quantization not in (None, *QUANTIZATIONS):
        raise ConfigError(
            "is unknown",
            field="quantization",
            value=quantization,
            remedy=f"use one of {', '.join(QUANTIZATIONS)}, or leave it out",
        )
    if model.moe is not None:
        raise UnsupportedModelError(
            "a mixture of experts can't be packed or quantized yet",
            field="quantization",
            value=quantization,
            remedy="leave it out",
        )
    names = _matrices(model)
    dense: FormatName = "float32" if dtype == "float32" else "bfloat16"
    if quantization == "gguf":
        return _as_stored(names, dense, encodings or {})
    if quantization == "int4":
        return _four_bits(names, dense, model)
    return Packing(dtype=dtype, formats=dict.fromkeys(names, quantization or dense))


def dtype_name(dtype: np.dtype) -> str:
    """Return a type's name in DTYPES; ConfigError if weights can't be loaded in it."""
    for name, known in DTYPES.items():
        if np.dtype(dtype) == known:
            return name
    raise ConfigError(
        "weights can't be loaded in this type",
        field="dtype",
        value=str(np.dtype(dtype)),
        remedy=f"use {' or '.join(DTYPES)}",
    )


def dense_shapes(model: ModelConfig, dtype: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Every weight by name as one plain array; in ``dtype``, or float32 where it must be."""
    return {
        name: jax.ShapeDtypeStruct(
            shape, np.float32 if is_wide(model, split_name(name)[0]) else DTYPES[dtype]
        )
        for name, shape in tensor_shapes(model).items()
    }


def stack_shapes(
    model: ModelConfig, dtype: str, formats: Mapping[str, FormatName]
) -> dict[str, PackedMatrix | jax.ShapeDtypeStruct]:
    """Every stack by name in the order of loading, with shapes in place of arrays.

    Beside the matrices, a layer's vectors are [L, N], and what belongs to no layer has its own
    shape; in ``dtype``, or float32 where the model asks for it.
    """
    stacks: dict[str, Any] = {}
    for full_name, shape in tensor_shapes(model).items():
        name, layer = split_name(full_name)
        if layer:
            continue
        layers = (model.num_layers,) if is_of_layer(full_name) else ()
        if name in formats:
            # A layer's matrices are [in, out], embedding and head [out, in].
            in_features, out_features = shape if name in MATRICES else shape[::-1]
            stacks[name] = PackedMatrix.abstract(
                formats[name],
                num_layers=layers[0] if layers else 1,
                in_features=in_features,
                out_features=out_features,
            )
        else:
            kind = np.dtype(np.float32) if is_wide(model, name) else DTYPES[dtype]
            stacks[name] = jax.ShapeDtypeStruct((*layers, *shape), kind)
    return stacks


def _matrices(model: ModelConfig) -> list[str]:
    names = dict.fromkeys(split_name(name)[0] for name in tensor_shapes(model))
    return [name for name in names if name in MATRICES] + [
        name for name in EMBEDDINGS if name in names
    ]


def _as_stored(
    names: Collection[str], dense: FormatName, encodings: Mapping[str, Collection[str]]
) -> Packing:
    formats: dict[str, FormatName] = {}
    widened: list[str] = []
    for name in names:
        stored = sorted(set(encodings.get(name, ())))
        format = PACKED_ENCODINGS.get(stored[0], dense) if len(stored) == 1 else dense
        formats[name] = format
        if format == dense and not _DENSE_ENCODINGS.issuperset(stored):
            widened.append(f"{name} ({' and '.join(stored)})")
    if set(formats.values()) == {dense}:
        found = sorted({encoding for stored in encodings.values() for encoding in stored})
        raise ConfigError(
            f"no matrix is stored alike in all layers as {', '.join(PACKED_ENCODINGS)}; "
            f"this checkpoint has {', '.join(found) or 'no GGUF file'}",
            field="quantization",
            value="gguf",
            remedy='use a GGUF file of such a type, or quantization="int8" or "int4"',
        )
    note = f"kept in {dense}, not as stored: {', '.join(widened)}" if widened else None
    return Packing(dtype=dense, formats=formats, note=note)


def _four_bits(names: Collection[str], dense: FormatName, model: ModelConfig) -> Packing:
    shapes = tensor_shapes(model)
    layers = [name for name in names if name not in EMBEDDINGS]
    unfit = [
        name
        for name in layers
        if FORMATS["int4"].obstacle(shapes[f"layers.0.{name}"][0]) is not None
    ]
    formats: dict[str, FormatName] = dict.fromkeys(names, "int8")
    formats |= dict.fromkeys((name for name in layers if name not in unfit), "int4")
    note = None
    if unfit:
        note = f"kept in int8, as int4 needs input features in groups of 32: {', '.join(unfit)}"
    return Packing(dtype=dense, formats=formats, note=note)

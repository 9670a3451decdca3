"""Tensors and metadata of a GGUF file."""

from __future__ import annotations

import itertools
from pathlib import Path

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.weights.gguf_header import GgufTensorInfo, read_gguf_header
from fastgen_jax.models.weights.stored import BF16, F16, F32, Encoding, StoredTensor, WeightFile


def _quantized(name: str, group_values: int, group_bytes: int) -> Encoding:
    return Encoding(name=name, group_values=group_values, group_bytes=group_bytes)


# ggml's number of the type -> how it is stored
ENCODINGS: dict[int, Encoding] = {
    0: F32,
    1: F16,
    2: _quantized("Q4_0", 32, 18),
    3: _quantized("Q4_1", 32, 20),
    6: _quantized("Q5_0", 32, 22),
    7: _quantized("Q5_1", 32, 24),
    8: _quantized("Q8_0", 32, 34),
    12: _quantized("Q4_K", 256, 144),
    13: _quantized("Q5_K", 256, 176),
    14: _quantized("Q6_K", 256, 210),
    30: BF16,
}


class GgufFile:
    """An open GGUF file: ``metadata`` as plain Python values and ``tensors`` by stored name.

    Raises CheckpointError when the file is truncated, corrupt, or holds a tensor type that isn't
    in ENCODINGS. ``files`` lists what is open; ``close`` closes it.
    """

    def __init__(self, path: Path) -> None:
        file = WeightFile(path)
        try:
            header = read_gguf_header(file)
            self.metadata = header.metadata
            self.tensors = {info.name: _stored(info, file) for info in header.tensors}
            _check_overlap(self.tensors, file)
        except BaseException:
            file.close()
            raise
        self.files = (file,)

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        for file in self.files:
            file.close()


def _stored(info: GgufTensorInfo, file: WeightFile) -> StoredTensor:
    encoding = ENCODINGS.get(info.type_id)
    if encoding is None:
        raise CheckpointError(
            f"tensor {info.name!r} has the type {_type_name(info.type_id)}, which isn't supported "
            f"({file.path})",
            field="type",
            value=_type_name(info.type_id),
            remedy="quantize the model to one of "
            + ", ".join(supported.name for supported in ENCODINGS.values()),
        )
    tensor = StoredTensor(
        name=info.name, shape=info.shape, encoding=encoding, file=file, offset=info.offset
    )
    tensor.check_extent()
    return tensor


def _check_overlap(tensors: dict[str, StoredTensor], file: WeightFile) -> None:
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for tensor, following in itertools.pairwise(ordered):
        if tensor.offset + tensor.num_bytes > following.offset:
            raise file.damaged(f"tensors {tensor.name!r} and {following.name!r} overlap")


def _type_name(type_id: int) -> str:
    # Imported here as only this error needs it.
    import gguf

    try:
        return gguf.GGMLQuantizationType(type_id).name
    except ValueError:
        return f"number {type_id}"

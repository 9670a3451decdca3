"""Lines of weights as 32-bit words with their scales: every format, from dense values or blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from jaxtyping import Float, Float32, UInt8, UInt32

from pallas_kernels.linear.format import GROUP, FormatName
from pallas_kernels.linear.quantize import quantize_groups

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedLines:
    """Consecutive output features, a line each.

    Attributes:
        words: W words of codes for each line, as ``WeightFormat`` describes them.
        scales: one for each line, or one for each of its G groups; None where there are none.
        mins: as scales.
    """

    words: UInt32[np.ndarray, "n W"]
    scales: Float[np.ndarray, "n *G"] | None = None
    mins: Float[np.ndarray, "n G"] | None = None


def encode_values(name: FormatName, values: Float[np.ndarray, "n K"]) -> EncodedLines:
    """Dense lines in a format, quantized where the format is.

    ``values`` are float32, float16 or bfloat16.

    Raises:
        ValueError: values that a scale of the format can't express.
    """
    if name == "bfloat16":
        return EncodedLines(words=_words(_padded(values.astype(_BFLOAT16, copy=False), 2)))
    wide = values.astype(np.float32, copy=False)
    encoded = _ENCODERS[name](wide)
    for scales in (encoded.scales, encoded.mins):
        if scales is not None and not np.isfinite(scales).all():
            raise ValueError(
                f"values up to {np.abs(wide).max():.3g} are beyond the scales of {name}, "
                f"which are {scales.dtype}; use another format"
            )
    return encoded


def encode_blocks(name: FormatName, blocks: UInt8[np.ndarray, "n bytes"]) -> EncodedLines:
    """Lines of GGUF blocks in the format of the same name, without loss.

    A block has a float16 scale, for Q4_1 a float16 minimum, and 32 codes: int8 for Q8_0; else 16
    bytes whose lower halves are features 0 to 15 and whose upper halves are 16 to 31.

    Raises:
        ValueError: the format isn't one of GGUF's.
    """
    if name not in BLOCK_BYTES:
        raise ValueError(f"format={name!r}: GGUF has blocks of {', '.join(BLOCK_BYTES)} only")
    groups = blocks.reshape(len(blocks), -1, BLOCK_BYTES[name])
    scales = _float16(groups[..., 0:2])
    if name == "q8_0":
        return EncodedLines(words=_words(_flat(groups[..., 2:])), scales=scales)
    if name == "q4_0":
        return EncodedLines(words=_unzipped(groups[..., 2:]), scales=scales)
    mins = _float16(groups[..., 2:4])
    return EncodedLines(words=_unzipped(groups[..., 4:]), scales=scales, mins=mins)


# Bytes of 32 weights in a GGUF file.
BLOCK_BYTES: Mapping[FormatName, int] = {"q8_0": 34, "q4_0": 18, "q4_1": 20}


def _encode_float32(values: Float32[np.ndarray, "n K"]) -> EncodedLines:
    return EncodedLines(words=_words(np.ascontiguousarray(values)))


def _encode_int8(values: Float32[np.ndarray, "n K"]) -> EncodedLines:
    scales = np.abs(values).max(axis=-1) / np.float32(127)
    return EncodedLines(words=_words(_padded(_rounded(values, scales[:, None]), 4)), scales=scales)


def _encode_q8_0(values: Float32[np.ndarray, "n K"]) -> EncodedLines:
    groups = values.reshape(len(values), -1, GROUP)
    scales = _to_float16(np.abs(groups).max(axis=-1) / np.float32(127))
    codes = _rounded(groups, scales.astype(np.float32)[..., None])
    return EncodedLines(words=_words(_flat(codes)), scales=scales)


def _encode_q4_0(values: Float32[np.ndarray, "n K"]) -> EncodedLines:
    groups = values.reshape(len(values), -1, GROUP)
    # Codes reach from -8 to 7: the number furthest from zero, of either sign, becomes -8.
    furthest = np.take_along_axis(groups, np.abs(groups).argmax(axis=-1)[..., None], axis=-1)
    scales = _to_float16(furthest[..., 0] / np.float32(-8))
    steps = _quotient(groups, scales.astype(np.float32)[..., None])
    codes = (np.clip(np.rint(steps), -8, 7) + 8).astype(np.uint8)
    return EncodedLines(words=_nibbles(_flat(codes)), scales=scales)


def _encode_q4_1(values: Float32[np.ndarray, "n K"]) -> EncodedLines:
    codes, scales, mins = quantize_groups(values.reshape(len(values), -1, GROUP))
    return EncodedLines(words=_nibbles(_flat(codes)), scales=scales, mins=mins)


_ENCODERS: Mapping[FormatName, Callable[[np.ndarray], EncodedLines]] = {
    "float32": _encode_float32,
    "int8": _encode_int8,
    "q8_0": _encode_q8_0,
    "q4_0": _encode_q4_0,
    "q4_1": _encode_q4_1,
    "int4": _encode_q4_1,
}


def _rounded(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(_quotient(values, scales)), -127, 127).astype(np.int8)


def _quotient(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """values / scales, and 0 where the scale is 0 because the values are, or nearly."""
    return values / np.where(scales == 0, np.float32(np.inf), scales)


def _to_float16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is too large becomes infinite and is refused
        return values.astype(np.float16)


def _float16(pairs: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pairs).view("<f2")[..., 0]


def _padded(codes: np.ndarray, multiple: int) -> np.ndarray:
    missing = -codes.shape[1] % multiple
    return np.pad(codes, ((0, 0), (0, missing))) if missing else np.ascontiguousarray(codes)


def _flat(groups: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(groups).reshape(len(groups), -1)


def _words(codes: np.ndarray) -> np.ndarray:
    return codes.view("<u4")


def _nibbles(codes: UInt8[np.ndarray, "n K"]) -> UInt32[np.ndarray, "n W"]:
    """Eight codes to a word, the first in its lowest bits."""
    return _squeezed(codes.view("<u8"))


def _unzipped(halves: UInt8[np.ndarray, "n G 16"]) -> UInt32[np.ndarray, "n W"]:
    """GGUF's bytes of two codes as words of eight consecutive ones."""
    pairs = np.ascontiguousarray(halves).view("<u8")
    mask = np.uint64(0x0F0F0F0F0F0F0F0F)
    words = np.empty((*pairs.shape[:2], 4), np.uint32)
    words[..., :2] = _squeezed(pairs & mask)
    words[..., 2:] = _squeezed((pairs >> np.uint64(4)) & mask)
    return words.reshape(len(words), -1)


def _squeezed(codes: np.ndarray) -> np.ndarray:
    """Eight bytes below 16, seen as a number of 64 bits, moved together into 32 bits."""
    for shift, mask in ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0xFFFFFFFF)):
        codes = (codes | (codes >> np.uint64(shift))) & np.uint64(mask)
    return codes.astype(np.uint32)

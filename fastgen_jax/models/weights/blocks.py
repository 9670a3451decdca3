"""Decoding GGUF's plainest blocks: 32 codes behind a scale, and perhaps a minimum.

The gguf package decodes them too, to the same bits, but takes half a second to be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

_NIBBLE = np.uint8(15)


def decode_q8_0(blocks: np.ndarray) -> np.ndarray:
    """Return scale * code of uint8 [N, G, 34] as float32 [N, G, 32]."""
    values = blocks[..., 2:].view(np.int8).astype(np.float32)
    values *= _float16(blocks[..., :2])
    return values


def decode_q4_0(blocks: np.ndarray) -> np.ndarray:
    """Return scale * (code - 8) of uint8 [N, G, 18] as float32 [N, G, 32]."""
    values = _codes(blocks[..., 2:])
    values -= np.float32(8)
    values *= _float16(blocks[..., :2])
    return values


def decode_q4_1(blocks: np.ndarray) -> np.ndarray:
    """Return scale * code + minimum of uint8 [N, G, 20] as float32 [N, G, 32]."""
    values = _codes(blocks[..., 4:])
    values *= _float16(blocks[..., :2])
    values += _float16(blocks[..., 2:4])
    return values


# Encoding's name -> what decodes its blocks.
BLOCK_DECODERS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType(
    {"Q8_0": decode_q8_0, "Q4_0": decode_q4_0, "Q4_1": decode_q4_1}
)


def _codes(halves: np.ndarray) -> np.ndarray:
    """The 32 codes of 16 bytes: their lower halves come before their upper ones."""
    packed = np.ascontiguousarray(halves)
    codes = np.empty((*packed.shape[:2], 2, 16), np.float32)
    codes[:, :, 0] = packed & _NIBBLE
    codes[:, :, 1] = packed >> np.uint8(4)
    return codes.reshape(*packed.shape[:2], 32)


def _float16(pairs: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pairs).view("<f2").astype(np.float32)

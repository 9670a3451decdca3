"""Weights read ahead on a thread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastgen_jax.errors import CheckpointError, ConfigError
from fastgen_jax.models.weights.checkpoint import open_checkpoint
from fastgen_jax.models.weights.prefetch import PrefetchedTensors

TINY = Path(__file__).parents[2] / "references" / "tiny_llama"
F32 = np.dtype(np.float32)


def test_the_same_tensors_in_the_same_order() -> None:
    with open_checkpoint(TINY) as checkpoint:
        expected = list(checkpoint.tensors(F32))
        prefetched = PrefetchedTensors(checkpoint, F32)
        found = list(prefetched(F32))
        prefetched.join()
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(found, expected, strict=True))


def test_what_reading_raises_reaches_who_iterates() -> None:
    checkpoint = open_checkpoint(TINY)
    checkpoint.close()
    prefetched = PrefetchedTensors(checkpoint, F32)
    with pytest.raises(CheckpointError, match="closed"):
        list(prefetched(F32))


def test_another_dtype_is_refused() -> None:
    with open_checkpoint(TINY) as checkpoint:
        prefetched = PrefetchedTensors(checkpoint, F32)
        with pytest.raises(ConfigError, match="read as float32"):
            next(prefetched(np.dtype(np.float64)))
        prefetched.join()

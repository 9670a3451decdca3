"""Windows of tensors: what one device needs, cut out while reading, equals the whole one cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from fastgen_jax.errors import ConfigError
from fastgen_jax.models.weights.checkpoint import Checkpoint, open_checkpoint
from fastgen_jax.models.weights.stored import StoredTensor
from fastgen_jax.models.weights.window import Window, WindowsOf, whole

FAMILIES = Path(__file__).parents[2] / "references" / "families"
CASES = sorted(path.parent.name for path in FAMILIES.glob("*/config.json"))
F32 = np.dtype(np.float32)


def split(axis: int, parts: int = 2) -> WindowsOf:
    """Equal windows of every tensor that divides along ``axis``, counted from its end."""

    def windows(name: str, shape: tuple[int, ...]) -> Sequence[Window]:
        # Norms of heads, which one family keeps in a tensor for each head, are never split.
        if len(shape) < axis or shape[-axis] % parts or name.endswith(("q_norm", "k_norm")):
            return (whole(shape),)
        sides = [[(0, size)] for size in shape]
        share = shape[-axis] // parts
        sides[-axis] = [(part * share, (part + 1) * share) for part in range(parts)]
        return tuple(product(*sides))

    return windows


def check_windows(checkpoint: Checkpoint, windows_of: WindowsOf) -> int:
    """Compare every window with its place in the whole tensor; the number of real windows."""
    tensors = dict(checkpoint.tensors(F32))
    count = 0
    for name, window, values in checkpoint.windows(F32, windows_of):
        cut = tensors[name][tuple(slice(*side) for side in window)]
        np.testing.assert_array_equal(values, cut, err_msg=f"{name} {window}")
        assert values.flags.c_contiguous
        count += values.shape != tensors[name].shape
    return count


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_windows_of_every_family_equal_the_whole_tensors_cut(case: str, axis: int) -> None:
    with open_checkpoint(FAMILIES / case) as checkpoint:
        assert check_windows(checkpoint, split(axis)) > 10


@pytest.mark.parametrize("others", [(), (1,), (2,)])
@pytest.mark.parametrize("case", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_windows_of_some_experts_equal_the_whole_tensors_cut(
    case: str, others: tuple[int, ...]
) -> None:
    """Experts that lie in tensors of their own, and in one; their matrices cut along one axis."""

    def windows(name: str, shape: tuple[int, ...]) -> Sequence[Window]:
        if len(shape) < 3:
            return ()
        halves = [
            [(0, size // 2), (size // 2, size)] if 3 - i in (3, *others) else [(0, size)]
            for i, size in enumerate(shape)
        ]
        return tuple(product(*halves))

    with open_checkpoint(FAMILIES / case) as checkpoint:
        assert check_windows(checkpoint, windows) == 2 * 3 * 2 ** (1 + len(others))


@pytest.mark.parametrize("axis", [1, 2])
def test_windows_of_interleaved_heads_equal_the_whole_tensors_cut(axis, gguf_path) -> None:
    with open_checkpoint(gguf_path) as checkpoint:
        assert check_windows(checkpoint, split(axis)) > 10


@pytest.mark.parametrize("axis", [1, 2])
def test_windows_of_quantized_lines_equal_the_whole_tensors_cut(axis, smollm2_gguf) -> None:
    """Thirds, as the model has 9 heads and 3 kv heads; those of a width are whole blocks of 32."""
    with open_checkpoint(smollm2_gguf) as checkpoint:
        assert check_windows(checkpoint, split(axis, 3)) > 10


@pytest.mark.parametrize(("name", "axis", "share"), [("embed", 2, 1), ("q", 1, 1), ("o", 2, 2)])
def test_only_lines_that_a_window_needs_are_read(
    name: str, axis: int, share: int, hf_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the embedding and outputs of a matrix are lines; inputs are a part of every line."""
    lines = 0
    read = StoredTensor.read_lines

    def counted(stored: StoredTensor, first: int, count: int) -> np.ndarray:
        nonlocal lines
        lines += count
        return read(stored, first, count)

    monkeypatch.setattr(StoredTensor, "read_lines", counted)

    def windows(tensor: str, shape: tuple[int, ...]) -> Sequence[Window]:
        return split(axis)(tensor, shape) if tensor.rsplit(".", 1)[-1] == name else ()

    with open_checkpoint(hf_directory) as checkpoint:
        list(checkpoint.windows(F32, windows))
        config = checkpoint.config
    stored = {"embed": config.vocab_size, "q": 2 * 256, "o": 2 * 256}[name]
    assert lines == share * stored


def test_a_window_that_cuts_a_head_whose_lines_change_places_is_refused(gguf_path: Path) -> None:
    def windows(name: str, shape: tuple[int, ...]) -> Sequence[Window]:
        return (((0, shape[0]), (0, 32)),) if name == "layers.0.q" else ()

    with (
        open_checkpoint(gguf_path) as checkpoint,
        pytest.raises(ConfigError, match=r"attn_q.*layers\.0\.q can't be read by itself; split"),
    ):
        list(checkpoint.windows(F32, windows))

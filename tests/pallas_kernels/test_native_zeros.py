"""Arrays of zeros in huge pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.native import native_library, native_obstacle, native_zeros, set_num_threads

pytestmark = [
    pytest.mark.usefixtures("jax_strict"),
    pytest.mark.skipif(
        native_obstacle() is not None, reason=f"no native kernels: {native_obstacle()}"
    ),
]

MEBIBYTE = 2**20


@pytest.fixture(params=[1, 3], autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    library = native_library()
    assert library is not None
    before = library.functions.fastgen_num_threads()
    set_num_threads(request.param)
    yield
    set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("shape", [(0,), (3,), (7, 1, 5), (2 * MEBIBYTE,), (1001, 3, 4099)])
def test_all_of_it_is_zero(shape: tuple[int, ...], dtype: str) -> None:
    """Whatever the memory held before."""
    make = jax.jit(lambda: native_zeros(shape, dtype))
    for _ in range(2):
        zeros = make()
        assert zeros.shape == shape
        assert zeros.dtype == jnp.dtype(dtype)
        assert not np.asarray(zeros).view(np.uint8).any()
        zeros.delete()
        jnp.ones(shape, dtype).block_until_ready().delete()  # dirt for the next turn


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="no transparent huge pages"
)
def test_huge_pages_are_asked_for() -> None:
    zeros = jax.jit(lambda: native_zeros((40 * MEBIBYTE,), "bfloat16"))()
    middle = zeros.unsafe_buffer_pointer() + 40 * MEBIBYTE
    assert "hg" in mapping_flags(middle)
    plain = jax.jit(lambda: jnp.zeros((40 * MEBIBYTE,), "bfloat16"))()
    assert "hg" not in mapping_flags(plain.unsafe_buffer_pointer() + 40 * MEBIBYTE)


def mapping_flags(address: int) -> list[str]:
    """What the kernel notes about the mapping that holds an address."""
    is_inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_inside = int(found[1], 16) <= address < int(found[2], 16)
        elif is_inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"nothing is mapped at {address:#x}")


def test_without_the_library_the_error_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "pallas_kernels.native.zeros"
    monkeypatch.setattr(f"{module}.native_library", lambda: None)
    monkeypatch.setattr(f"{module}.native_obstacle", lambda: "there is no compiler")
    with pytest.raises(RuntimeError, match="there is no compiler"):
        native_zeros((1,), "float32")

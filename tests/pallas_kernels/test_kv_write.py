"""Writing keys and values into pages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import write_kv

pytestmark = pytest.mark.usefixtures("jax_strict")


def test_values_land_in_their_slots_and_nowhere_else() -> None:
    rng = np.random.default_rng(0)
    pages = rng.normal(size=(5, 2, 4, 8)).astype(np.float32)
    values = rng.normal(size=(3, 2, 8)).astype(np.float32)
    page_ids, slots = np.array([3, 1, 3], np.int32), np.array([0, 3, 2], np.int32)
    written = write_kv(jnp.asarray(pages), jnp.asarray(values), page_ids, slots)
    expected = pages.copy()
    for value, page, slot in zip(values, page_ids, slots, strict=True):
        expected[page, :, slot] = value
    np.testing.assert_array_equal(np.asarray(written), expected)


def test_values_take_the_pages_dtype() -> None:
    pages = jnp.zeros((2, 1, 4, 8), jnp.bfloat16)
    values = jnp.full((1, 1, 8), 1.001, jnp.float32)
    written = write_kv(pages, values, jnp.array([1]), jnp.array([2]))
    assert written.dtype == jnp.bfloat16
    assert float(written[1, 0, 2, 0]) == 1.0


def test_donated_pages_are_updated_in_place() -> None:
    pages = jnp.zeros((64, 2, 4, 8))
    address = pages.unsafe_buffer_pointer()
    values = jnp.ones((3, 2, 8))
    write = jax.jit(write_kv, donate_argnums=0)
    written = write(pages, values, jnp.array([1, 2, 3]), jnp.array([0, 0, 0]))
    assert written.unsafe_buffer_pointer() == address
    assert pages.is_deleted()

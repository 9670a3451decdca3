"""What every implementation of the write must do, told by float64 numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

NULL_PAGE = 0
UNTOUCHED = 7.0  # what every page holds before


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteCase:
    """Sizes of one write; ``places`` are the tokens' (page, slot)."""

    places: tuple[tuple[int, int], ...] = ((3, 0), (1, 3), (3, 2))
    num_kv_heads: int = 2
    head_dim: int = 64
    rotary_dim: int = 64
    num_pages: int = 4
    page_size: int = 4
    dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    with_scales: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteInputs:
    """Arguments of one write."""

    k_pages: jax.Array
    v_pages: jax.Array
    k: jax.Array
    v: jax.Array
    page_ids: jax.Array
    slots: jax.Array
    rotation: tuple[jax.Array, jax.Array] | None
    k_scales: jax.Array | None
    v_scales: jax.Array | None


Written = tuple[jax.Array, jax.Array]


def distinct_places(num_tokens: int) -> tuple[tuple[int, int], ...]:
    """Slots of consecutive tokens in pages of 4, from page 1 on."""
    return tuple((1 + token // 4, token % 4) for token in range(num_tokens))


def make_inputs(case: WriteCase, *, magnitude: float = 1.0) -> WriteInputs:
    """Random keys and values for a case, and pages that hold UNTOUCHED everywhere."""
    rng = np.random.default_rng(7)
    tokens, heads, dim = len(case.places), case.num_kv_heads, case.head_dim
    pool = jnp.full(
        (case.num_pages, heads, case.page_size, dim), UNTOUCHED, jnp.dtype(case.kv_dtype)
    )

    def values() -> jax.Array:
        return jnp.asarray(magnitude * rng.normal(size=(tokens, heads, dim)), case.dtype)

    def scales() -> jax.Array | None:
        return jnp.asarray(rng.uniform(0.5, 2, heads), jnp.float32) if case.with_scales else None

    angles = rng.uniform(0, 2 * np.pi, (tokens, case.rotary_dim // 2))
    cos, sin = jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
    return WriteInputs(
        k_pages=pool,
        v_pages=pool + 0,
        k=values(),
        v=values(),
        page_ids=jnp.array([page for page, _ in case.places], jnp.int32),
        slots=jnp.array([slot for _, slot in case.places], jnp.int32),
        rotation=(cos, sin) if case.rotary_dim else None,
        k_scales=scales(),
        v_scales=scales(),
    )


def rotated(inputs: WriteInputs) -> np.ndarray:
    """Keys rotated in float64."""
    keys = np.asarray(inputs.k, np.float64)
    if inputs.rotation is None:
        return keys
    cos, sin = (np.asarray(table, np.float64)[:, None] for table in inputs.rotation)
    half = cos.shape[-1]
    low, high, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin, rest], -1)


def expected_pages(inputs: WriteInputs) -> tuple[np.ndarray, np.ndarray]:
    """K and v pages in float64, before they are rounded to the pages' dtype."""
    results = []
    for values, scales, pages in (
        (rotated(inputs), inputs.k_scales, inputs.k_pages),
        (np.asarray(inputs.v, np.float64), inputs.v_scales, inputs.v_pages),
    ):
        if scales is not None:
            values = values / np.asarray(scales, np.float64)[:, None]
        limit = float(jnp.finfo(pages.dtype).max)
        expected = np.asarray(pages, np.float64)
        for token, (page, slot) in enumerate(zip(inputs.page_ids, inputs.slots, strict=True)):
            expected[int(page), :, int(slot)] = np.clip(values[token], -limit, limit)
        results.append(expected)
    return results[0], results[1]


def assert_written(written: Written, inputs: WriteInputs) -> None:
    """Every token is in its slot within one rounding, and no other slot has changed."""
    for before in (inputs.k_pages, inputs.v_pages):  # they weren't donated
        assert (np.asarray(before, np.float32) == UNTOUCHED).all()
    for pages, expected, name in zip(written, expected_pages(inputs), "kv", strict=True):
        assert pages.dtype == inputs.k_pages.dtype
        # One rounding to the pages' dtype, and what float32 loses where a rotation cancels.
        eps = float(jnp.finfo(pages.dtype).eps)
        tiny = max(float(jnp.finfo(pages.dtype).smallest_subnormal), 1e-6)
        np.testing.assert_allclose(
            np.asarray(pages[1:], np.float64),
            expected[1:],
            rtol=0.51 * eps,
            atol=tiny,
            err_msg=name,
        )


ALL_KINDS = [
    pytest.param(WriteCase(), id="full_rotation"),
    pytest.param(WriteCase(rotary_dim=0), id="no_rotation"),
    pytest.param(WriteCase(rotary_dim=32), id="partial_rotation"),
    pytest.param(WriteCase(head_dim=80, rotary_dim=32, num_kv_heads=3), id="d80_partial_3_heads"),
    pytest.param(WriteCase(head_dim=96, rotary_dim=96, num_kv_heads=1), id="d96"),
    pytest.param(
        WriteCase(head_dim=128, rotary_dim=128, dtype="float16", kv_dtype="float16"), id="d128"
    ),
    pytest.param(WriteCase(head_dim=256, rotary_dim=64), id="d256"),
    pytest.param(WriteCase(kv_dtype="float8_e4m3fn", with_scales=True), id="e4m3_scales"),
    pytest.param(WriteCase(kv_dtype="float8_e4m3fn", rotary_dim=32, num_kv_heads=1), id="e4m3"),
    pytest.param(WriteCase(kv_dtype="float8_e5m2", rotary_dim=0, with_scales=True), id="e5m2"),
]


class WriteContract:
    """Tests that an implementation inherits; ``write`` is all that it has to give."""

    def write(self, inputs: WriteInputs) -> Written:
        """Both page arrays after the write."""
        raise NotImplementedError

    @pytest.mark.parametrize("case", ALL_KINDS)
    def test_values_land_in_their_slots_and_nowhere_else(self, case: WriteCase) -> None:
        inputs = make_inputs(case)
        assert_written(self.write(inputs), inputs)

    def test_first_and_last_slots_of_pages(self) -> None:
        inputs = make_inputs(WriteCase(places=((1, 3), (2, 0), (2, 3), (3, 0), (3, 3), (1, 0))))
        assert_written(self.write(inputs), inputs)

    @pytest.mark.parametrize("num_tokens", [1, 17])
    def test_any_number_of_tokens(self, num_tokens: int) -> None:
        case = WriteCase(places=distinct_places(num_tokens), num_pages=6, num_kv_heads=1)
        inputs = make_inputs(case)
        assert_written(self.write(inputs), inputs)

    def test_padding_leaves_the_real_tokens_alone(self) -> None:
        inputs = make_inputs(WriteCase(places=((1, 0), (0, 0), (0, 0), (2, 3), (0, 0))))
        nan = jnp.asarray(np.nan, inputs.k.dtype)
        is_padding = (inputs.page_ids == NULL_PAGE)[:, None, None]
        poisoned = replace(inputs, k=jnp.where(is_padding, nan, inputs.k))
        assert_written(self.write(poisoned), inputs)

    def test_numbers_out_of_range_take_the_largest_of_8_bit_pages(self) -> None:
        inputs = make_inputs(WriteCase(kv_dtype="float8_e4m3fn"), magnitude=1e4)
        written = self.write(inputs)
        assert_written(written, inputs)
        for pages in written:
            wide = np.abs(np.asarray(pages[1:], np.float32))
            assert wide.max() == 448.0
            assert np.isfinite(wide).all()

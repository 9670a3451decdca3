"""The native write under the shared tests, in place, and on several threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_kernels import CPU, KvWriteNative, KvWriteReference, KvWriteShape, select_write_config
from pallas_kernels import target as target_module
from pallas_kernels.kv_write import write_kv
from pallas_kernels.layer_pages import LayerPages
from pallas_kernels.native import native_library, native_obstacle, set_num_threads
from tests.pallas_kernels.kv_write_contract import (
    ALL_KINDS,
    UNTOUCHED,
    WriteCase,
    WriteContract,
    WriteInputs,
    Written,
    assert_written,
    distinct_places,
    make_inputs,
)

pytestmark = pytest.mark.usefixtures("jax_strict")
needs_native = pytest.mark.skipif(
    native_obstacle() is not None, reason=f"no native kernels: {native_obstacle()}"
)

CONFIG = KvWriteNative()


def written(inputs: WriteInputs, num_tokens: jax.Array | None = None) -> Written:
    """Both page arrays after a jitted write that may not change its arguments."""

    def write(inputs: dict[str, jax.Array], num_tokens: jax.Array | None) -> Written:
        return write_kv(**inputs, num_tokens=num_tokens, config=CONFIG)

    arrays = {name: getattr(inputs, name) for name in WriteInputs.__dataclass_fields__}
    return jax.block_until_ready(jax.jit(write)(arrays, num_tokens))


@pytest.fixture(params=[1, 4])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    library = native_library()
    assert library is not None
    before = library.functions.fastgen_num_threads()
    set_num_threads(request.param)
    yield
    set_num_threads(before)


@needs_native
@pytest.mark.usefixtures("_threads")
class TestNative(WriteContract):
    """The library that was built for this processor."""

    def write(self, inputs: WriteInputs) -> Written:
        """The kernel's result."""
        if inputs.k.dtype == jnp.float16:
            pytest.skip("the native kernel knows no float16")
        return written(inputs)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("head_dim", [8, 24, 64])
    def test_float32_and_other_heads(self, dtype: str, head_dim: int) -> None:
        inputs = make_inputs(
            WriteCase(dtype=dtype, kv_dtype="float32", head_dim=head_dim, rotary_dim=8)
        )
        assert_written(self.write(inputs), inputs)

    def test_many_tokens(self) -> None:
        """Enough of them for several threads."""
        case = WriteCase(places=distinct_places(400), num_pages=102, num_kv_heads=3)
        inputs = make_inputs(case)
        assert_written(self.write(inputs), inputs)

    def test_only_the_first_tokens_are_written(self) -> None:
        inputs = make_inputs(WriteCase(places=((0, 0), (1, 1), (2, 2), (3, 3))))
        pages = written(inputs, jnp.int32(2))
        fewer = {name: getattr(inputs, name)[:2] for name in ("k", "v", "page_ids", "slots")}
        assert inputs.rotation is not None
        rotation = (inputs.rotation[0][:2], inputs.rotation[1][:2])
        assert_written(pages, replace(inputs, rotation=rotation, **fewer))
        assert (np.asarray(pages[0][2:], np.float32) == UNTOUCHED).all()

    def test_one_scale_alone(self) -> None:
        inputs = make_inputs(WriteCase(kv_dtype="float8_e4m3fn", with_scales=True))
        one = replace(inputs, v_scales=None)
        assert_written(self.write(one), one)


@needs_native
@pytest.mark.parametrize("kv_dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_8_bit_numbers_are_rounded_as_jax_rounds_them(kv_dtype: str) -> None:
    """Every code, every middle between two, and what lies beside the middles."""
    codes = np.arange(256, dtype=np.uint8).view(jnp.dtype(kv_dtype)).astype(np.float32)
    numbers = np.unique(codes[np.isfinite(codes)])
    middles = (numbers[1:] + numbers[:-1]) / 2
    beside = [np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)]
    values = np.concatenate([numbers, middles, *beside]).astype(np.float32)
    values = np.pad(values, (0, -len(values) % 8))
    inputs = make_inputs(
        WriteCase(
            places=distinct_places(len(values) // 8),
            num_pages=1 + -(-len(values) // 32),
            num_kv_heads=1,
            head_dim=8,
            rotary_dim=0,
            dtype="float32",
            kv_dtype=kv_dtype,
        )
    )
    numbers = jnp.asarray(values.reshape(-1, 1, 8))
    pages, _ = written(replace(inputs, k=numbers))
    seen = np.asarray(pages)[np.asarray(inputs.page_ids), :, np.asarray(inputs.slots)]
    expected = np.asarray(numbers.astype(kv_dtype))
    np.testing.assert_array_equal(seen.view(np.uint8), expected.view(np.uint8))


@needs_native
class TestInPlace:
    """Donated pages are written where they lie."""

    case = WriteCase(num_pages=4096, page_size=16, num_kv_heads=3)

    def test_a_donated_write_copies_nothing(self) -> None:
        inputs = make_inputs(self.case)

        def write(k_pages: jax.Array, v_pages: jax.Array) -> Written:
            return write_kv(
                k_pages,
                v_pages,
                inputs.k,
                inputs.v,
                inputs.page_ids,
                inputs.slots,
                rotation=inputs.rotation,
                config=CONFIG,
            )

        self._check(inputs, jax.jit(write, donate_argnums=(0, 1)))

    def test_nor_does_a_loop_over_layers(self) -> None:
        """As the step has it: a pool that holds the layers end to end."""
        inputs = make_inputs(self.case)

        def layers(k_pages: jax.Array, v_pages: jax.Array) -> Written:
            def layer(number: jax.Array, pages: Written) -> Written:
                return write_kv(
                    *pages,
                    inputs.k,
                    inputs.v,
                    inputs.page_ids,
                    inputs.slots,
                    rotation=inputs.rotation,
                    layer_pages=LayerPages(layer=number, pages_per_layer=4),
                    config=CONFIG,
                )

            return lax.fori_loop(0, 3, layer, (k_pages, v_pages))

        k_pages, _ = self._check(inputs, jax.jit(layers, donate_argnums=(0, 1)))
        pages = np.asarray(k_pages, np.float32)
        np.testing.assert_array_equal(pages[1:4], pages[5:8])
        np.testing.assert_array_equal(pages[1:4], pages[9:12])
        assert (pages[12:] == UNTOUCHED).all()

    def _check(self, inputs: WriteInputs, jitted: jax.stages.Wrapped) -> Written:
        before = [pages.unsafe_buffer_pointer() for pages in (inputs.k_pages, inputs.v_pages)]
        compiled = jitted.lower(inputs.k_pages, inputs.v_pages).compile()
        analysis = compiled.memory_analysis()
        assert analysis.temp_size_in_bytes < inputs.k_pages.nbytes // 100
        pages = jax.block_until_ready(compiled(inputs.k_pages, inputs.v_pages))
        assert [array.unsafe_buffer_pointer() for array in pages] == before
        assert (np.asarray(pages[0][3, :, 0], np.float32) != UNTOUCHED).any()
        return pages

    def test_old_pages_that_are_still_wanted_are_kept(self) -> None:
        """The check of the memory can fail: here both pools are copied."""
        inputs = make_inputs(self.case)
        pages = written(inputs)
        assert pages[0].unsafe_buffer_pointer() != inputs.k_pages.unsafe_buffer_pointer()
        assert_written(pages, inputs)


SHAPE = KvWriteShape(
    num_tokens=32,
    num_kv_heads=3,
    head_dim=64,
    rotary_dim=64,
    num_pages=100,
    page_size=16,
    dtype="bfloat16",
    kv_dtype="bfloat16",
)


def test_it_is_chosen_on_a_cpu_where_it_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "native_obstacle", lambda: None)
    assert select_write_config(SHAPE, CPU) == KvWriteNative()
    half = replace(SHAPE, dtype="float16", kv_dtype="float16")
    assert select_write_config(half, CPU) == KvWriteReference()
    monkeypatch.setattr(target_module, "native_obstacle", lambda: "no compiler")
    assert select_write_config(SHAPE, CPU) == KvWriteReference()
    with pytest.raises(ValueError, match="no compiler"):
        select_write_config(SHAPE, CPU, implementation="native")


def test_all_kinds_but_float16_are_tested() -> None:
    """A skip in the contract hides no more than it says."""
    kinds = [kind.values[0] for kind in ALL_KINDS]
    assert sum(kind.dtype == "float16" for kind in kinds) == 1

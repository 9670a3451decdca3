"""Rotating keys and writing keys and values into pages."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastgen_jax.errors import ConfigError
from pallas_kernels.kv_write import (
    KvWriteConfig,
    KvWriteMosaic,
    KvWriteNative,
    KvWriteReference,
    KvWriteShape,
    KvWriteTriton,
    scatter_into_pages,
    select_write_config,
)
from pallas_kernels.kv_write.api import write_kv
from pallas_kernels.kv_write.triton import write_kv_triton
from pallas_kernels.native import native_obstacle
from pallas_kernels.target import A100, CPU, H100
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
from tests.pallas_kernels.mosaic_interpreter import RaceError, interpreted_gpu

pytestmark = pytest.mark.usefixtures("jax_strict")


# Most programs here are large and run once: what XLA would gain by optimizing them is
# less than it would take.
COMPILE_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def write_with(inputs: WriteInputs, config: KvWriteConfig) -> Written:
    """The pages after a write of the public api, jitted as a step is."""
    return run(partial(write_kv, config=config), inputs)


def run(
    write: Callable[..., Written],
    inputs: WriteInputs,
    compiler_options: dict[str, bool | int] | None = None,
) -> Written:
    """The pages after a write."""
    arrays = (inputs.k_pages, inputs.v_pages, inputs.k, inputs.v, inputs.page_ids, inputs.slots)
    scales = {"k_scales": inputs.k_scales, "v_scales": inputs.v_scales}
    # A function of its own for each call: a trace of another test must not be taken again.
    jitted = jax.jit(
        lambda *args, **kwargs: write(*args, **kwargs), compiler_options=compiler_options
    )
    return jax.block_until_ready(jitted(*arrays, rotation=inputs.rotation, **scales))


class TestReference(WriteContract):
    """XLA's scatter as it is used on a CPU."""

    config: ClassVar[KvWriteConfig] = KvWriteReference()

    def write(self, inputs: WriteInputs) -> Written:
        """The reference's result."""
        return run(partial(write_kv, config=self.config), inputs, COMPILE_FAST)


class TestReferenceWithoutPadding(TestReference):
    """XLA's scatter as it is used on a GPU."""

    config: ClassVar[KvWriteConfig] = KvWriteReference(drop_padding=True)

    def test_padding_is_not_written(self) -> None:
        inputs = make_inputs(WriteCase(places=((0, 0), (1, 1), (0, 0))))
        for pages in self.write(inputs):
            assert (np.asarray(pages[0], np.float32) == UNTOUCHED).all()


@pytest.fixture
def mutable_kernel() -> Iterator[ModuleType]:
    """The kernel's module; what was traced of it is forgotten before and after it is changed."""
    from pallas_kernels.kv_write import mosaic_gpu

    mosaic_gpu.write_kv_mosaic.clear_cache()
    yield mosaic_gpu
    mosaic_gpu.write_kv_mosaic.clear_cache()


class TestMosaicInterpreted(WriteContract):
    """The Hopper kernel on a simulated GPU that reports races."""

    def write(self, inputs: WriteInputs) -> Written:
        """The kernel's result; raises RaceError."""
        heads = inputs.k.shape[1]
        with interpreted_gpu():
            config = KvWriteMosaic(block_heads=2 if heads % 2 == 0 else 1)
            return run(partial(write_kv, config=config), inputs, COMPILE_FAST)

    def test_padding_is_not_written(self) -> None:
        inputs = make_inputs(WriteCase(places=((0, 0), (1, 1), (0, 0))))
        for pages in self.write(inputs):
            assert (np.asarray(pages[0], np.float32) == UNTOUCHED).all()

    def test_heads_of_several_blocks(self) -> None:
        inputs = make_inputs(WriteCase(num_kv_heads=4, kv_dtype="float8_e4m3fn", with_scales=True))
        assert_written(self.write(inputs), inputs)

    def test_two_tokens_of_one_slot_are_a_race(self) -> None:
        places = ((1, 0), (1, 1), (1, 0))
        with pytest.raises(RaceError):
            self.write(make_inputs(WriteCase(places=places, num_kv_heads=1)))

    @pytest.mark.parametrize(
        ("name", "which", "kv_dtype"),
        [
            ("barrier_wait", 0, "bfloat16"),  # values are sent on before they have arrived
            ("barrier_wait", 0, "float8_e4m3fn"),  # values are converted before that
            ("barrier_wait", 1, "bfloat16"),  # keys
            ("commit_smem", 0, "bfloat16"),  # keys aren't yet visible to the bulk copies
            ("commit_smem", 0, "float8_e4m3fn"),  # converted values
            ("commit_smem", 1, "float8_e4m3fn"),  # converted keys
            ("wait_smem_to_gmem", 0, "bfloat16"),  # the block ends while its copies still read
        ],
    )
    def test_a_missing_synchronisation_is_caught(
        self,
        name: str,
        which: int,
        kv_dtype: str,
        mutable_kernel: ModuleType,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        mosaic_gpu = mutable_kernel
        call, number = getattr(mosaic_gpu.plgpu, name), itertools.count()

        def all_but_one(*arguments: object) -> None:
            if next(number) != which:
                call(*arguments)

        monkeypatch.setattr(mosaic_gpu.plgpu, name, all_but_one)
        with pytest.raises(RaceError):
            self.write(make_inputs(WriteCase(kv_dtype=kv_dtype)))

    def test_a_last_block_that_repeats_tokens_is_a_race(
        self, mutable_kernel: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The last of several blocks overlaps the one before; that may not write its tokens too."""
        monkeypatch.setattr(mutable_kernel, "_is_own", lambda first, row, start, page: page != 0)
        case = WriteCase(places=distinct_places(17), num_pages=6, num_kv_heads=1)
        with pytest.raises(RaceError):
            self.write(make_inputs(case))


class TestTritonInterpreted(WriteContract):
    """The Triton kernel as plain jax."""

    def write(self, inputs: WriteInputs) -> Written:
        """The kernel's result."""
        write = partial(write_kv_triton, config=KvWriteTriton(), interpret=True)
        return run(write, inputs, COMPILE_FAST)

    def test_padding_is_not_written(self) -> None:
        inputs = make_inputs(WriteCase(places=((0, 0), (1, 1), (0, 0))))
        for pages in self.write(inputs):
            assert (np.asarray(pages[0], np.float32) == UNTOUCHED).all()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
class TestGpu(WriteContract):
    """What ``select_write_config`` takes for the GPU at hand."""

    def write(self, inputs: WriteInputs) -> Written:
        """The result of the selected kernel."""
        device = jax.devices()[0]
        major, minor = (int(part) for part in device.compute_capability.split("."))
        target = replace(H100, compute_capability=(major, minor), num_sms=device.core_count)
        return write_with(inputs, select_write_config(shape_of(inputs), target))


def shape_of(inputs: WriteInputs) -> KvWriteShape:
    """The sizes that a configuration is selected for."""
    return KvWriteShape(
        num_tokens=inputs.k.shape[0],
        num_kv_heads=inputs.k.shape[1],
        head_dim=inputs.k.shape[2],
        rotary_dim=0 if inputs.rotation is None else 2 * inputs.rotation[0].shape[1],
        num_pages=inputs.k_pages.shape[0],
        page_size=inputs.k_pages.shape[2],
        dtype=str(inputs.k.dtype),
        kv_dtype=str(inputs.k_pages.dtype),
    )


def test_a_wrong_slot_would_be_noticed() -> None:
    inputs = make_inputs(WriteCase(num_kv_heads=1))
    wrong = replace(inputs, slots=inputs.slots.at[2].set(3))
    written = write_with(wrong, KvWriteReference())
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_written(written, inputs)


def test_a_wrong_angle_would_be_noticed() -> None:
    inputs = make_inputs(WriteCase(num_kv_heads=1))
    assert inputs.rotation is not None
    cos, sin = inputs.rotation
    written = write_with(replace(inputs, rotation=(cos, -sin)), KvWriteReference())
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_written(written, inputs)


@pytest.mark.parametrize("case", ALL_KINDS)
def test_every_kind_of_the_contract_has_a_kernel_on_hopper(case: WriteCase) -> None:
    assert isinstance(select_write_config(shape_of(make_inputs(case)), H100), KvWriteMosaic)


SHAPE = KvWriteShape(
    num_tokens=256,
    num_kv_heads=8,
    head_dim=128,
    rotary_dim=128,
    num_pages=4096,
    page_size=16,
    dtype="bfloat16",
    kv_dtype="bfloat16",
)


def test_selection_follows_the_device() -> None:
    assert isinstance(select_write_config(SHAPE, H100), KvWriteMosaic)
    assert isinstance(select_write_config(SHAPE, A100), KvWriteTriton)
    native = KvWriteNative() if native_obstacle() is None else KvWriteReference()
    assert select_write_config(SHAPE, CPU) == native
    assert select_write_config(SHAPE, CPU, implementation="xla") == KvWriteReference()
    named = select_write_config(SHAPE, H100, implementation="xla")
    assert named == KvWriteReference(drop_padding=True)


@pytest.mark.parametrize("num_tokens", [1, 256, 2048])
@pytest.mark.parametrize("num_kv_heads", [1, 3, 8, 32])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_blocks_of_heads_divide_the_heads_and_fill_the_device(
    num_tokens: int, num_kv_heads: int, head_dim: int
) -> None:
    shape = replace(
        SHAPE, num_tokens=num_tokens, num_kv_heads=num_kv_heads, head_dim=head_dim, rotary_dim=0
    )
    config = select_write_config(shape, H100)
    assert isinstance(config, KvWriteMosaic)
    assert num_kv_heads % config.block_heads == 0
    assert config.block_heads * head_dim <= 512
    blocks = -(-num_tokens // config.block_tokens) * num_kv_heads // config.block_heads
    fewest = {80: 4, 96: 2}.get(head_dim, 1)  # heads of a token that is whole 128 bytes
    fewest = fewest if num_kv_heads % fewest == 0 else 1
    assert blocks >= H100.num_sms or config.block_heads == fewest


@pytest.mark.parametrize(
    ("change", "target", "implementation", "reason"),
    [
        ({}, CPU, "mosaic_gpu", "needs a CUDA GPU, this is 'cpu'"),
        ({}, A100, "mosaic_gpu", "compute capability 9.0"),
        ({"dtype": "float32"}, H100, "mosaic_gpu", "not in float32"),
        ({"kv_dtype": "float16"}, H100, "triton", "not float16"),
        ({"head_dim": 72, "rotary_dim": 72}, H100, "mosaic_gpu", "not 72"),
        ({"rotary_dim": 24}, H100, "mosaic_gpu", "multiple of 16, not 24"),
        ({"num_kv_heads": 40}, H100, "triton", "up to 32 kv heads, not 40"),
        ({"kv_dtype": "float8_e4m3fn"}, A100, "triton", "from compute capability 8.9 on"),
        ({"kv_dtype": "float8_e5m2", "num_pages": 2**18}, H100, "triton", "can't address"),
        ({}, H100, "cuda", "is unknown"),
    ],
)
def test_a_named_implementation_fails_with_the_reason(
    change: dict, target, implementation, reason: str
) -> None:
    shape = replace(SHAPE, **change)
    with pytest.raises(ValueError, match=reason):
        select_write_config(shape, target, implementation=implementation)
    if change:
        select_write_config(shape, target)  # None serves every shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": jnp.zeros((3, 2, 32), jnp.bfloat16)}, "differ"),
        ({"v_pages": jnp.zeros((4, 2, 8, 64), jnp.bfloat16)}, "differ"),
        ({"slots": jnp.zeros(4, jnp.int32)}, "slots"),
        ({"rotation": (jnp.zeros((3, 33)), jnp.zeros((3, 33)))}, "2 \\* D2 from 2 to D=64"),
        ({"rotation": (jnp.zeros((4, 32)), jnp.zeros((4, 32)))}, "must be float32"),
        ({"k_scales": jnp.ones(2)}, "k_scales belongs to 8-bit pages"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    inputs = replace(make_inputs(WriteCase()), **change)
    with pytest.raises(ValueError, match=message):
        write_with(inputs, KvWriteReference())


def test_scales_need_one_entry_for_each_head() -> None:
    inputs = make_inputs(WriteCase(kv_dtype="float8_e4m3fn"))
    with pytest.raises(ValueError, match="v_scales"):
        write_with(replace(inputs, v_scales=jnp.ones(3)), KvWriteReference())


def test_the_reference_equals_rope_before_a_scatter() -> None:
    """The fused form changes nothing, to the last bit, for pages of the keys' dtype."""
    from fastgen_jax.models.rope import apply_rope

    inputs = make_inputs(WriteCase())
    assert inputs.rotation is not None

    @jax.jit
    def apart() -> jax.Array:
        keys = apply_rope(inputs.k, inputs.rotation)
        return scatter_into_pages(inputs.k_pages, keys, inputs.page_ids, inputs.slots)

    written, _ = write_with(inputs, KvWriteReference())
    np.testing.assert_array_equal(np.asarray(written), np.asarray(apart()))


@pytest.mark.parametrize("drop_padding", [False, True])
def test_donated_pages_are_updated_in_place(drop_padding: bool) -> None:
    inputs = make_inputs(WriteCase(num_pages=64))
    config = KvWriteReference(drop_padding=drop_padding)
    write = jax.jit(partial(write_kv, config=config), donate_argnums=(0, 1))
    before = (inputs.k_pages, inputs.v_pages)
    addresses = [pages.unsafe_buffer_pointer() for pages in before]
    arrays = (inputs.k, inputs.v, inputs.page_ids, inputs.slots)
    after = write(*before, *arrays, rotation=inputs.rotation)
    assert [pages.unsafe_buffer_pointer() for pages in after] == addresses
    assert all(pages.is_deleted() for pages in before)


def test_values_take_the_pages_dtype() -> None:
    pages = jnp.zeros((2, 1, 4, 8), jnp.bfloat16)
    values = jnp.full((1, 1, 8), 1.001, jnp.float32)
    written = scatter_into_pages(pages, values, jnp.array([1]), jnp.array([2]))
    assert written.dtype == jnp.bfloat16
    assert float(written[1, 0, 2, 0]) == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["h100", "a100"])
def test_compiled_for_a_gpu_it_is_one_launch_in_place(gpu: str, tmp_path: Path) -> None:
    """Plain, on 8 devices, with padded rows, and with scales; then the XLA form."""
    from fastgen_jax.plan.deviceless import find_compiler

    try:
        packages = find_compiler()
    except ConfigError as error:
        pytest.skip(str(error))
    script = [sys.executable, "-m", "tests.pallas_kernels.kv_write_aot", gpu, str(tmp_path)]
    ran = subprocess.run(
        [*script, "0", "4", "7", "11", "12"],
        env={**os.environ, "PYTHONPATH": str(packages), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    *ours, xla = (json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{"))
    assert len(ours) == 4
    kernel = {"h100": "KvWriteMosaic", "a100": "KvWriteTriton"}[gpu]
    for seen in ours:
        assert seen["config"].startswith(kernel)
        assert seen["launches"] == 1
        assert all(code["spill_bytes"] == 0 for code in seen["kernels"].values()), seen
    for seen in (*ours, xla):
        assert seen["alias_bytes"] == seen["pool_bytes"]
        assert (seen["temp_bytes"], seen["copies"]) == (0, 0)
        assert not any(name.startswith("atom") for name in seen["accesses"])
    # What the kernel gains: one launch instead of two, and wide accesses instead of narrow ones.
    assert xla["launches"] == 2
    assert "st.global.b16" in xla["accesses"]
    wide = {"h100": "cp.async.bulk.global.shared", "a100": "st.global.v4"}[gpu]
    assert any(name.startswith(wide) for name in ours[0]["accesses"])


@pytest.fixture(autouse=True)
def _fresh_interpreter() -> Iterator[None]:
    """A race that was raised must not be remembered by the next test."""
    from tests.pallas_kernels.mosaic_interpreter import reset

    yield
    reset()

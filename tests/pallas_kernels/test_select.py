"""Which implementation is chosen where, and what a refusal says."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from pallas_kernels import (
    A100,
    CPU,
    H100,
    AttentionNative,
    AttentionShape,
    HopperConfig,
    ReferenceConfig,
    Target,
    TritonConfig,
    select_config,
    target_of,
)
from pallas_kernels import target as target_module
from pallas_kernels.native import native_obstacle
from pallas_kernels.ragged_paged_attention.heuristics import shared_bytes
from pallas_kernels.ragged_paged_attention.units import max_units, num_slots

LLAMA = AttentionShape(
    num_tokens=768,
    num_rows=256,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    page_size=32,
    pages_per_row=256,
    dtype="bfloat16",
    kv_dtype="bfloat16",
)


def test_the_best_for_each_device() -> None:
    assert isinstance(select_config(LLAMA, H100), HopperConfig)
    assert isinstance(select_config(LLAMA, A100), TritonConfig)
    on_cpu = AttentionNative if native_obstacle() is None else ReferenceConfig
    assert isinstance(select_config(LLAMA, CPU), on_cpu)
    volta = Target(platform="gpu", compute_capability=(7, 0), num_sms=80, shared_memory=98304)
    assert isinstance(select_config(LLAMA, volta), ReferenceConfig)


def test_what_no_kernel_can_do_gets_the_reference() -> None:
    for change in ({"dtype": "float32", "kv_dtype": "float32"}, {"head_dim": 32}, {"page_size": 8}):
        assert isinstance(select_config(replace(LLAMA, **change), H100), ReferenceConfig)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("num_kv_heads", [8, 1])
def test_every_shape_fits_the_shared_memory(
    head_dim: int, page_size: int, kv_dtype: str, num_kv_heads: int
) -> None:
    shape = replace(
        LLAMA,
        head_dim=head_dim,
        page_size=page_size,
        kv_dtype=kv_dtype,
        num_heads=3 * num_kv_heads,
        num_kv_heads=num_kv_heads,
    )
    config = select_config(shape, H100)
    assert isinstance(config, HopperConfig)
    assert shared_bytes(shape, config) <= H100.shared_memory
    assert config.stages >= 2


def test_splits_follow_from_static_sizes() -> None:
    """A long context may be split; tiles are where few kv heads leave the device idle."""
    config = select_config(LLAMA, H100)
    assert isinstance(config, HopperConfig)
    assert config.splits.max_splits == 8
    assert config.splits.max_tile_splits == 1
    one_head = replace(LLAMA, num_heads=4, num_kv_heads=1)
    few = select_config(one_head, H100)
    assert isinstance(few, HopperConfig)
    assert few.splits.max_tile_splits == 2
    assert num_slots(one_head, few.splits) == 256 * 8 + 768 * 2
    assert max_units(one_head, few) == 256 * 8 + (768 // 16 + 256) * 2
    short = select_config(replace(LLAMA, pages_per_row=16), H100)
    assert isinstance(short, HopperConfig)
    assert num_slots(LLAMA, short.splits) == 0


@pytest.mark.parametrize(
    ("implementation", "change", "target", "words"),
    [
        ("mosaic_gpu", {}, CPU, "needs a CUDA GPU"),
        ("mosaic_gpu", {}, A100, r"compute capability 9\.0.*this is 8\.0"),
        ("triton", {"dtype": "float32"}, A100, "float32"),
        ("triton", {"kv_dtype": "int8"}, A100, "int8"),
        ("mosaic_gpu", {"head_dim": 72}, H100, "head_dim 64, 80.*not 72"),
        ("mosaic_gpu", {"page_size": 8}, H100, "page_size 16.*not 8"),
        ("mosaic_gpu", {"num_heads": 136}, H100, "up to 16 query heads.*not 17"),
        ("native", {}, H100, "runs on a CPU, this is 'gpu'"),
        ("cuda", {}, H100, "unknown"),
    ],
)
def test_a_named_one_fails_with_the_reason(
    implementation: str, change: dict[str, object], target: Target, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        select_config(replace(LLAMA, **change), target, implementation=implementation)


@pytest.fixture
def with_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the native kernels had been built."""
    monkeypatch.setattr(target_module, "native_obstacle", lambda: None)


@pytest.mark.usefixtures("with_native")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "float16"}, "bfloat16 or float32, not float16"),
        ({"kv_dtype": "int8"}, "pages of .*, not int8"),
        ({"head_dim": 60}, "multiples of 8 up to 256, not 60"),
        ({"head_dim": 264}, "multiples of 8 up to 256, not 264"),
        ({"num_heads": 97 * 8}, "up to 96 query heads a kv head, not 97"),
    ],
)
def test_what_the_native_kernel_cannot_do(change: dict[str, object], words: str) -> None:
    shape = replace(LLAMA, **change)
    assert isinstance(select_config(shape, CPU), ReferenceConfig)
    with pytest.raises(ValueError, match=words):
        select_config(shape, CPU, implementation="native")


@pytest.mark.usefixtures("with_native")
def test_the_native_kernel_takes_any_page_and_float32() -> None:
    shape = replace(LLAMA, page_size=7, head_dim=8, dtype="float32", kv_dtype="float8_e5m2")
    assert isinstance(select_config(shape, CPU), AttentionNative)


def test_a_machine_without_native_kernels_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "native_obstacle", lambda: "no compiler")
    assert isinstance(select_config(LLAMA, CPU), ReferenceConfig)
    with pytest.raises(ValueError, match=r'implementation="native".*here: no compiler'):
        select_config(LLAMA, CPU, implementation="native")


def test_heads_that_cannot_be_grouped_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_heads=30.*num_kv_heads=8"):
        replace(LLAMA, num_heads=30)


def test_a_device_tells_what_it_is() -> None:
    gpu = SimpleNamespace(
        platform="gpu",
        compute_capability="9.0",
        core_count=132,
        device_kind="NVIDIA H100 80GB HBM3",
    )
    assert target_of(gpu) == H100
    assert target_of(SimpleNamespace(platform="cpu")) == CPU
    assert target_of(SimpleNamespace(platform="tpu")).platform == "tpu"

"""The table of GPUs against numbers of the data sheets, and XLA's description made from it."""

from __future__ import annotations

import pytest

from fastgen_jax.errors import ConfigError
from fastgen_jax.plan.gpus import A100, GPUS, H100, find_gpu, target_config


@pytest.mark.parametrize(
    ("name", "teraflops", "terabytes", "gigabytes"),
    [("h100", 989, 3.35, 80), ("h200", 989, 4.8, 141), ("a100", 312, 2.04, 80)],
)
def test_rates_are_those_of_the_data_sheet(
    name: str, teraflops: float, terabytes: float, gigabytes: float
) -> None:
    gpu = find_gpu(name)
    assert gpu.bf16_flops / 1e12 == pytest.approx(teraflops, rel=0.002)
    assert gpu.bandwidth / 1e12 == pytest.approx(terabytes, rel=0.002)
    assert gpu.memory / 1e9 == pytest.approx(gigabytes, rel=0.08)


def test_fp8_is_twice_as_fast_where_there_is_any() -> None:
    assert H100.tensor_flops("f8e4m3fn") == 2 * H100.tensor_flops("bf16")
    assert A100.tensor_flops("f8e4m3fn") < A100.tensor_flops("bf16") / 10


def test_float32_runs_on_the_plain_cores() -> None:
    assert H100.tensor_flops("f32") / 1e12 == pytest.approx(67, rel=0.01)
    assert A100.tensor_flops("f32") / 1e12 == pytest.approx(19.5, rel=0.01)


def test_an_unknown_gpu_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"gpu='h1000'.*h100, h200, a100, a100-40gb"):
        find_gpu("h1000")


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_the_description_holds_what_xla_needs(gpu) -> None:
    text = target_config(gpu)
    assert f"core_count: {gpu.num_sms}\n" in text
    assert f"shared_memory_per_block_optin: {gpu.shared_per_block}\n" in text
    assert "driver_version" in text
    assert "matrix_unit_description" in text
    assert ("ACCELERATED_FEATURES" in text) == (gpu.compute_capability >= (9, 0))
    assert text.count("{") == text.count("}")

"""Engine settings: the files in configs/, TOML in and out, refused values, defaults by platform."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from fastgen_jax.config import EngineConfig, ResolvedConfig, resolve_config
from fastgen_jax.errors import ConfigError, FastGenError
from fastgen_jax.scheduling.policy import Fcfs

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.toml"))

# File -> the platform it is for, and the compiled steps that its comments promise.
PROMISED_SHAPES = {
    "cpu-interactive.toml": ("cpu", ((1, 1), (4, 4), (64, 4))),
    "cpu-throughput.toml": ("cpu", ((8, 8), (32, 32), (256, 32))),
    "gpu-default.toml": ("gpu", ((256, 256), (512, 256))),
}

# One value, at least, for each way in which a field can be wrong.
REFUSED: dict[str, list[Any]] = {
    "dtype": ["float16", "", None],
    "token_budget": [0, -1, 1.5, "256", True],
    "max_num_seqs": [0, -1, 1.5, "32", True],
    "block_size": [0, -1, 1.5, None, True],
    "num_kv_blocks": [1, 0, 64.0, True],
    "kv_cache_memory_fraction": [0.0, -0.1, 1.01, float("nan")],
    "max_model_len": [0, -1, 2048.0, True],
    "tensor_parallel_size": [0, -1, "2"],
    "expert_parallel_size": [0, -1, 1.5],
    "host_timeout_seconds": [0, -1.0, "20", True],
    "step_shapes": [
        (),
        ((8,),),
        ((8, 4, 2),),
        ((8, 0),),
        ((8.0, 4),),
        ((4, 8),),  # more rows than tokens
        ((8, 4), (8, 4)),  # no ascent in tokens
        ((16, 4), (8, 4)),
        ((8, 8), (16, 4)),  # a descent in rows
    ],
    "replay_log": ["", 3, True, Path("log.jsonl")],
    "max_chained_steps": [0, -1, 1.5, True],
    "max_chained_tokens": [0, -1, 1.5, True],
    "num_threads": [0, -1, 1.5, True],
    "quantization": ["int2", "", 4, False],
    "activation_quantization": ["int4", "", 8, False, "int8"],  # the last: without quantization
    "chunk_multiple": [0, -1, 1.5, None, True],
    "enable_prefix_caching": [0, 1, "yes", None],
    "max_logprobs": [-1, 1.5, None, True],
    "max_logit_bias": [0, -1, 1.5, None, True],
    "max_bad_words": [0, -1, 1.5, None, True],
    "seed": [-1, 1.5, None, True],
    "implementation": ["cuda", "", None],
    "load_format": ["onnx", "", None],
    "compile_in_background": [0, 1, "yes", None],
    "step_history": [-1, 1.5, None, True],
    "show_progress": [0, 1, "no", None],
}
# The scheduler refuses an unknown policy (tests/scheduling/test_policy.py); a directory is a path.
CHECKED_ELSEWHERE = {"policy", "compilation_cache_dir"}

EVERYTHING_SET = EngineConfig(
    dtype="bfloat16",
    quantization="int4",
    activation_quantization="int8",
    token_budget=64,
    max_num_seqs=8,
    block_size=16,
    num_kv_blocks=100,
    kv_cache_memory_fraction=0.25,
    max_model_len=512,
    step_shapes=((8, 4), (64, 8)),
    max_chained_steps=2,
    max_chained_tokens=16,
    num_threads=3,
    chunk_multiple=8,
    policy="priority",
    enable_prefix_caching=False,
    max_logprobs=5,
    max_logit_bias=10,
    max_bad_words=3,
    seed=7,
    host_timeout_seconds=5.0,
    implementation="xla",
    load_format="gguf",
    compilation_cache_dir='a "quoted" \\ place',
    compile_in_background=True,
    replay_log="run.jsonl",
    step_history=10,
    show_progress=False,
)


def resolve(
    config: EngineConfig, platform: str = "cpu", model_max_len: int = 8192
) -> ResolvedConfig:
    return resolve_config(config, platform=platform, model_max_len=model_max_len)


def write(directory: Path, text: str) -> Path:
    path = directory / "engine.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- the files in configs/ ---------------------------------------------------------------------


def test_every_file_has_its_promise() -> None:
    assert [path.name for path in CONFIGS] == sorted(PROMISED_SHAPES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_file_gives_the_steps_that_its_comments_promise(path: Path) -> None:
    platform, shapes = PROMISED_SHAPES[path.name]
    resolved = resolve(EngineConfig.from_toml(path), platform)
    assert resolved.step_shapes == shapes
    for shape in shapes:
        assert str(shape) in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_file_survives_the_round_trip(path: Path, tmp_path: Path) -> None:
    config = EngineConfig.from_toml(path)
    assert EngineConfig.from_toml(write(tmp_path, config.to_toml())) == config


# --- TOML in and out ---------------------------------------------------------------------------


def test_every_field_survives_the_round_trip(tmp_path: Path) -> None:
    default = EngineConfig()
    # Quantized weights stay on one device.
    split = EngineConfig(tensor_parallel_size=2, expert_parallel_size=4)
    unset = [
        field.name
        for field in fields(EngineConfig)
        if all(
            getattr(config, field.name) == getattr(default, field.name)
            for config in (EVERYTHING_SET, split)
        )
    ]
    assert not unset, "a field at its default would survive without being written"
    for config in (EVERYTHING_SET, split):
        assert EngineConfig.from_toml(write(tmp_path, config.to_toml())) == config


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2)])
def test_quantized_weights_on_several_devices_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"quantization='int8': .*\(2 asked for\)"):
        EngineConfig(
            quantization="int8", tensor_parallel_size=sizes[0], expert_parallel_size=sizes[1]
        )


def test_fields_at_none_are_left_out(tmp_path: Path) -> None:
    text = EngineConfig().to_toml()
    assert not re.search(r"^(token_budget|step_shapes|max_model_len) =", text, re.MULTILINE)
    assert EngineConfig.from_toml(write(tmp_path, text)) == EngineConfig()
    assert EngineConfig.from_toml(write(tmp_path, "")) == EngineConfig()


def test_an_unknown_key_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, 'dtype = "float32"\ntoken_buget = 8\n')
    with pytest.raises(ConfigError, match=r"^token_buget=8: .*known ones are .*token_budget"):
        EngineConfig.from_toml(path)
    with pytest.raises(ConfigError, match=r"^num_gpus=2: "):
        EngineConfig.from_dict({"num_gpus": 2})


def test_a_bad_value_in_a_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^token_budget=0: "):
        EngineConfig.from_toml(write(tmp_path, "token_budget = 0\n"))


@pytest.mark.parametrize("text", ["token_budget = ", "[[", "a = 1\na = 2\n"])
def test_what_is_no_toml_is_refused_with_its_path(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_toml(path)
    assert (caught.value.field, caught.value.value) == ("config", str(path))


def test_a_missing_file_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.toml"
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_toml(path)
    assert (caught.value.field, caught.value.value) == ("config", str(path))


def test_a_policy_object_cannot_be_written() -> None:
    with pytest.raises(ConfigError, match=r"^policy=.*name a registered policy"):
        EngineConfig(policy=Fcfs()).to_toml()


# --- refused values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in REFUSED.items() for value in values],
    ids=lambda item: repr(item).replace(" ", ""),
)
def test_a_bad_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_dict({name: value})
    assert caught.value.field == name
    assert str(caught.value).startswith(f"{name}=")
    assert isinstance(caught.value, FastGenError)
    assert isinstance(caught.value, ValueError)


def test_every_field_has_refused_values() -> None:
    assert set(REFUSED) | CHECKED_ELSEWHERE == {field.name for field in fields(EngineConfig)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token_budget", 1),
        ("max_num_seqs", 1),
        ("block_size", 1),
        ("num_kv_blocks", 2),
        ("kv_cache_memory_fraction", 1.0),
        ("max_model_len", 1),
        ("step_shapes", ((1, 1),)),
        ("max_chained_steps", 1),
        ("max_chained_tokens", 1),
        ("chunk_multiple", 1),
        ("max_logprobs", 0),
        ("max_logit_bias", 1),
        ("max_bad_words", 1),
        ("seed", 0),
    ],
)
def test_the_least_value_is_taken(name: str, value: object) -> None:
    assert getattr(EngineConfig.from_dict({name: value}), name) == value


def test_shapes_must_end_at_the_budget() -> None:
    with pytest.raises(ConfigError, match=r"^step_shapes=.*token_budget=64 exactly"):
        EngineConfig(token_budget=64, step_shapes=((8, 4), (32, 8)))
    config = EngineConfig(token_budget=64, step_shapes=((8, 4), (64, 8)))
    assert resolve(config).token_budget == 64


# --- defaults in force -------------------------------------------------------------------------


def test_defaults_on_a_cpu() -> None:
    resolved = resolve(EngineConfig(), "cpu", 2048)
    assert resolved.dtype == "float32"
    assert resolved.token_budget == 256
    assert resolved.max_num_seqs == 32
    assert resolved.step_shapes == ((1, 1), (32, 32), (256, 32))
    assert 0.0 < resolved.kv_cache_memory_fraction <= 0.1, "the host's memory is shared"
    assert resolved.max_model_len == 2048
    assert resolved.max_blocks_per_seq == 64
    assert resolved.max_chained_steps == 4
    assert resolved.max_chained_tokens == 32


def test_defaults_elsewhere() -> None:
    resolved = resolve(EngineConfig(), "gpu", 2048)
    assert resolved.dtype == "bfloat16"
    assert resolved.token_budget == 512
    assert resolved.max_num_seqs == 256
    assert resolved.step_shapes == ((256, 256), (512, 256))
    assert resolved.kv_cache_memory_fraction == 0.9
    assert resolved.max_chained_steps == 1
    assert resolved.max_chained_tokens is None


def test_what_is_set_holds_on_every_platform() -> None:
    # What belongs to native kernels and to a CPU is refused elsewhere.
    everywhere = replace(
        EVERYTHING_SET, quantization=None, activation_quantization=None, num_threads=None
    )
    for platform in ("cpu", "gpu"):
        resolved = resolve(everywhere, platform)
        assert resolved.dtype == "bfloat16"
        assert resolved.step_shapes == ((8, 4), (64, 8))
        assert (resolved.token_budget, resolved.max_num_seqs) == (64, 8)
        assert resolved.kv_cache_memory_fraction == 0.25
        assert (resolved.max_model_len, resolved.max_blocks_per_seq) == (512, 32)


@pytest.mark.parametrize(
    ("settings", "platform", "shapes"),
    [
        ({"dtype": "bfloat16"}, "cpu", ((8, 8), (32, 32), (256, 32))),
        ({"token_budget": 1}, "cpu", ((1, 1),)),
        ({"token_budget": 4, "dtype": "bfloat16"}, "cpu", ((4, 4),)),
        ({"max_num_seqs": 1}, "cpu", ((1, 1), (256, 1))),
        ({"token_budget": 16}, "cpu", ((1, 1), (16, 16))),  # more requests than tokens
        ({"token_budget": 16}, "gpu", ((16, 16),)),
        ({"max_num_seqs": 8, "token_budget": 64}, "gpu", ((8, 8), (64, 8))),
    ],
)
def test_the_ladder_of_default_shapes(
    settings: dict[str, Any], platform: str, shapes: tuple[tuple[int, int], ...]
) -> None:
    resolved = resolve(EngineConfig(**settings), platform)
    assert resolved.step_shapes == shapes
    # What the ladder gives could also be declared.
    assert resolve(EngineConfig(step_shapes=shapes), platform).step_shapes == shapes


def test_given_shapes_set_budget_and_rows() -> None:
    resolved = resolve(EngineConfig(step_shapes=[(4, 4), (16, 8)]))
    assert resolved.step_shapes == ((4, 4), (16, 8))
    assert (resolved.token_budget, resolved.max_num_seqs) == (16, 8)
    more = resolve(EngineConfig(step_shapes=((16, 8),), max_num_seqs=20))
    assert more.max_num_seqs == 20, "more requests may run than take part in one step"


def test_shapes_with_more_rows_than_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^step_shapes=.*max_num_seqs=4"):
        resolve(EngineConfig(step_shapes=((16, 8),), max_num_seqs=4))


def test_a_length_above_the_models_is_refused() -> None:
    assert resolve(EngineConfig(max_model_len=2048), model_max_len=2048).max_model_len == 2048
    with pytest.raises(ConfigError, match=r"^max_model_len=2049: .*2048.*use at most 2048"):
        resolve(EngineConfig(max_model_len=2049), model_max_len=2048)


@pytest.mark.parametrize(("length", "blocks"), [(1, 1), (32, 1), (33, 2), (64, 2)])
def test_a_request_gets_blocks_for_its_longest(length: int, blocks: int) -> None:
    assert resolve(EngineConfig(max_model_len=length)).max_blocks_per_seq == blocks


def test_settings_need_no_jax() -> None:
    program = "import sys, fastgen_jax.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_config_knows_every_implementation_of_the_kernels() -> None:
    """It lists them itself, since it is read where jax isn't loaded."""
    from fastgen_jax.config import Implementation
    from pallas_kernels.target import IMPLEMENTATIONS

    assert get_args(Implementation) == IMPLEMENTATIONS


def test_native_kernels_change_the_ladder_and_make_padding_free() -> None:
    native = resolve_config(EngineConfig(), platform="cpu", model_max_len=512, has_native=True)
    assert native.is_native
    assert native.step_shapes == ((1, 1), (8, 8), (256, 32))
    plain = resolve_config(EngineConfig(), platform="cpu", model_max_len=512)
    assert not plain.is_native
    assert plain.step_overhead < native.step_overhead
    dense = resolve_config(
        EngineConfig(), platform="cpu", model_max_len=512, has_native=True, can_pack=False
    )
    assert dense.is_native  # attention and page write are
    assert (dense.step_shapes, dense.step_overhead) == (plain.step_shapes, plain.step_overhead)


@pytest.mark.parametrize("implementation", ["auto", "xla"])
def test_threads_without_native_kernels_are_refused(implementation: str) -> None:
    config = EngineConfig(num_threads=2, implementation=implementation)
    has_native = implementation == "xla"
    with pytest.raises(ConfigError, match="num_threads"):
        resolve_config(config, platform="cpu", model_max_len=512, has_native=has_native)
    allowed = EngineConfig(num_threads=2)
    assert resolve_config(allowed, platform="cpu", model_max_len=512, has_native=True).is_native


def test_rounding_needs_quantized_weights() -> None:
    with pytest.raises(ConfigError, match=r"quantization is None; set quantization too") as caught:
        EngineConfig(activation_quantization="int8")
    assert (caught.value.field, caught.value.value) == ("activation_quantization", "int8")
    assert EngineConfig(activation_quantization="none").quantization is None


@pytest.mark.parametrize(
    ("settings", "has_native", "expected"),
    [
        ({}, True, "none"),
        ({"quantization": "gguf"}, True, "int8"),
        ({"quantization": "gguf"}, False, "none"),
        ({"quantization": "gguf", "implementation": "xla"}, True, "none"),
        ({"quantization": "int8", "activation_quantization": "none"}, True, "none"),
        ({"quantization": "int8", "activation_quantization": "int8"}, False, "int8"),
        ({"activation_quantization": "none"}, True, "none"),
    ],
)
def test_activations_are_rounded_where_native_kernels_gain_by_it(
    settings: dict[str, Any], has_native: bool, expected: str
) -> None:
    resolved = resolve_config(
        EngineConfig(**settings), platform="cpu", model_max_len=512, has_native=has_native
    )
    assert resolved.activation_quantization == expected


def test_quantization_is_refused_on_other_devices() -> None:
    config = EngineConfig(quantization="int8")
    with pytest.raises(ConfigError, match="quantization"):
        resolve_config(config, platform="gpu", model_max_len=512)
    resolve_config(config, platform="cpu", model_max_len=512)

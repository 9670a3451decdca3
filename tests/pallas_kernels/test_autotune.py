"""Tuning without a GPU: candidates, inputs, checks, the choice, and the files it is kept in."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import (
    A100,
    H100,
    AttentionOptions,
    AttentionShape,
    HopperConfig,
    ReferenceConfig,
    SplitRule,
    TritonConfig,
    autotune,
    select_config,
)
from pallas_kernels.ragged_paged_attention import select, tuned
from pallas_kernels.ragged_paged_attention.arg_specs import (
    AttentionSpec,
    attention_specs,
    find_specs,
)
from pallas_kernels.ragged_paged_attention.heuristics import shared_bytes
from pallas_kernels.ragged_paged_attention.tuned import (
    TunedEntry,
    TunedFile,
    read_tuned,
    tuned_config,
    tuned_path,
)

SMALL = AttentionSpec(
    name="small",
    shape=AttentionShape(
        num_tokens=24,
        num_rows=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        page_size=8,
        pages_per_row=8,
        dtype="float32",
        kv_dtype="float32",
    ),
    options=AttentionOptions(scale=0.25),
    has_sinks=True,
)
CONFIGS = tuple(ReferenceConfig(decode_keys=keys, chunk_keys=16) for keys in (16, 24, 32))
LLAMA = find_specs(("Llama-3.1-8B, 256 decodes",))[0]


class TestCandidates:
    """What is tried."""

    @pytest.mark.parametrize("spec", attention_specs()[::5], ids=lambda spec: spec.name)
    def test_hopper_sizes_fit_the_device_and_the_pages(self, spec: AttentionSpec) -> None:
        heuristic = spec.config(H100)
        found = autotune.candidates(spec.shape, H100, heuristic)
        assert found[0] == heuristic
        assert len(set(found)) == len(found) > 4
        for config in found:
            assert isinstance(config, HopperConfig)
            assert shared_bytes(spec.shape, config) <= H100.shared_memory
            sizes = sorted((config.block_keys, spec.shape.page_size))
            assert sizes[1] % sizes[0] == 0

    def test_a_smaller_device_has_fewer(self) -> None:
        heuristic = LLAMA.config(H100)
        assert isinstance(heuristic, HopperConfig)
        half = replace(H100, shared_memory=H100.shared_memory // 2)
        all_of_them = autotune.candidates(LLAMA.shape, H100, heuristic)
        assert len(autotune.candidates(LLAMA.shape, half, heuristic)) < len(all_of_them)

    def test_triton_tiles_hold_a_group(self) -> None:
        shape = replace(LLAMA.shape, num_heads=8 * LLAMA.shape.num_kv_heads)
        heuristic = select_config(shape, A100)
        assert isinstance(heuristic, TritonConfig)
        found = autotune.candidates(shape, A100, heuristic)
        assert found[0] == heuristic
        assert len(set(found)) == len(found) > 4
        assert all(isinstance(c, TritonConfig) and c.tile_rows >= 8 for c in found)


@pytest.fixture(scope="module")
def inputs() -> autotune.Inputs:
    """Those of the small spec."""
    return autotune.make_inputs(SMALL, mean_keys=30)


class TestInputs:
    """The batch that is timed."""

    @pytest.mark.parametrize(
        "spec", [SMALL, replace(SMALL, shape=replace(SMALL.shape, num_tokens=4))]
    )
    def test_rows_fill_the_step_and_share_no_page(self, spec: AttentionSpec) -> None:
        batch = autotune.make_inputs(spec, mean_keys=30).batch
        queries, keys = np.asarray(batch.query_len), np.asarray(batch.kv_len)
        assert queries.sum() == spec.shape.num_tokens
        assert (keys >= queries).all()
        assert (keys <= spec.shape.pages_per_row * spec.shape.page_size).all()
        used = np.asarray(batch.block_tables)
        pages = used[used > 0]
        assert len(set(pages.tolist())) == len(pages) == (-(-keys // spec.shape.page_size)).sum()
        singles = int(batch.num_single_rows)
        assert (queries[:singles] == 1).all()
        assert (queries[singles:] > 1).all()

    def test_eight_bit_pages_have_scales(self) -> None:
        shape = replace(SMALL.shape, dtype="bfloat16", kv_dtype="float8_e4m3fn")
        inputs = autotune.make_inputs(replace(SMALL, shape=shape), mean_keys=30)
        assert inputs.arguments.k_pages.dtype == jnp.float8_e4m3fn
        assert inputs.arguments.k_scales is not None


class Clock:
    """Gives each measurement the next of the durations that were set."""

    def __init__(self, durations: list[float]) -> None:
        self._ticks = iter([tick for duration in durations for tick in (0.0, duration)])

    def __call__(self) -> float:
        return next(self._ticks)


@pytest.fixture
def meddle(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces the attention of some configurations."""

    def install(changes: dict[ReferenceConfig, Any]) -> None:
        real = autotune.ragged_paged_attention

        def attend(*arrays: Any, config: Any, **others: Any) -> jax.Array:
            out = real(*arrays, config=config, **others)
            return changes[config](out) if config in changes else out

        monkeypatch.setattr(autotune, "ragged_paged_attention", attend)

    return install


class TestTune:
    """The loop, with the XLA form in place of kernels and a clock of its own."""

    def test_each_is_timed_by_its_median_and_in_turns(self, inputs: autotune.Inputs) -> None:
        # Round by round: every configuration has one outlier, each in another round.
        clock = Clock([9, 2, 3, 1, 9, 3, 1, 2, 9])
        calls: list[int] = []
        tried = autotune.tune(
            SMALL,
            CONFIGS,
            inputs,
            rounds=3,
            clock=clock,
            progress=lambda: calls.append(1),
        )
        assert [candidate.seconds * autotune._CHAINED_CALLS for candidate in tried] == [1, 2, 3]
        assert [candidate.obstacle for candidate in tried] == [None] * 3
        assert len(calls) == 3 + 3

    def test_a_wrong_result_and_a_refusal_are_left_out(
        self, inputs: autotune.Inputs, meddle: Any
    ) -> None:
        def refuse(_: jax.Array) -> jax.Array:
            raise RuntimeError("too much\n shared memory")

        meddle({CONFIGS[1]: lambda out: out + 0.1, CONFIGS[2]: refuse})
        tried = autotune.tune(SMALL, CONFIGS, inputs, rounds=1, clock=Clock([1]))
        assert tried[0].obstacle is None
        assert "differs from the reference by 0.1" in (tried[1].obstacle or "")
        assert "RuntimeError: too much shared memory" in (tried[2].obstacle or "")
        assert autotune.best(tried) == tried[0]

    def test_nan_is_a_wrong_result(self, inputs: autotune.Inputs, meddle: Any) -> None:
        meddle({CONFIGS[1]: lambda out: out.at[3].set(jnp.nan)})
        tried = autotune.tune(SMALL, CONFIGS[1:2], inputs, rounds=1, clock=Clock([]))
        assert "differs from the reference by nan" in (tried[0].obstacle or "")

    def test_the_heuristic_stays_unless_another_gains_enough(self) -> None:
        def tried(*seconds: float) -> list[autotune.Candidate]:
            return [
                autotune.Candidate(config=config, seconds=duration)
                for config, duration in zip(CONFIGS, seconds, strict=True)
            ]

        assert autotune.best(tried(1.0, 0.99, 1.5)).config == CONFIGS[0]
        assert autotune.best(tried(1.0, 0.9, 0.8)).config == CONFIGS[2]
        assert autotune.best(tried(float("inf"), 0.9, 1.0)).config == CONFIGS[1]


ENTRY = TunedEntry(
    shape=LLAMA.shape,
    config=HopperConfig(block_keys=128, stages=3, splits=SplitRule(keys=2048, max_splits=4)),
    seconds=5e-5,
    heuristic_seconds=6e-5,
)
FILE = TunedFile(device_kind=H100.kind, versions={"jax": "1.2"}, entries=(ENTRY,))


class TestFile:
    """Where the sizes are kept."""

    def test_it_comes_back_as_it_was_saved(self, tmp_path: Path) -> None:
        other = replace(ENTRY, config=TritonConfig(num_warps=8))
        file = FILE.with_entry(other)
        file.save(tmp_path / "file.json")
        assert read_tuned(tmp_path / "file.json") == file
        assert [path.name for path in tmp_path.iterdir()] == ["file.json"]

    def test_an_entry_replaces_that_of_its_key_alone(self) -> None:
        faster = replace(ENTRY, config=HopperConfig(stages=4))
        assert FILE.with_entry(faster).entries == (faster,)
        triton = replace(ENTRY, config=TritonConfig())
        assert FILE.with_entry(triton).entries == (ENTRY, triton)

    @pytest.mark.parametrize(
        "text",
        [
            "{",
            "[]",
            "{}",
            json.dumps({"device_kind": "x", "versions": {}, "entries": [{"shape": {}}]}),
        ],
    )
    def test_a_broken_file_is_refused_by_name(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "gpu.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"gpu\.json: no file of tuned sizes.*delete it"):
            read_tuned(path)

    def test_sizes_that_make_no_sense_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "gpu.json"
        FILE.save(path)
        path.write_text(path.read_text().replace('"stages": 3', '"stages": 0'))
        with pytest.raises(ValueError, match="stages=0"):
            read_tuned(path)

    def test_a_device_finds_its_file_by_its_name(self, tmp_path: Path) -> None:
        assert tuned_path(H100.kind, folder=tmp_path).name == "nvidia-h100-80gb-hbm3.json"
        assert tuned_config(LLAMA.shape, H100.kind, "mosaic_gpu", folder=tmp_path) is None
        FILE.save(tuned_path(H100.kind, folder=tmp_path))
        assert tuned_config(LLAMA.shape, H100.kind, "mosaic_gpu", folder=tmp_path) == ENTRY.config
        assert tuned_config(LLAMA.shape, H100.kind, "triton", folder=tmp_path) is None
        assert tuned_config(LLAMA.shape, A100.kind, "mosaic_gpu", folder=tmp_path) is None

    def test_the_files_that_are_shipped_can_be_read(self) -> None:
        for path in tuned.TUNED_FOLDER.glob("*.json"):
            assert tuned_path(read_tuned(path).device_kind) == path


class TestSelection:
    """``select_config`` with a file of sizes."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        FILE.save(tuned_path(H100.kind, folder=tmp_path))
        look_up = functools.partial(tuned_config, folder=tmp_path)
        monkeypatch.setattr(select, "tuned_config", look_up)

    def test_it_takes_the_sizes_of_exactly_this_shape(self) -> None:
        assert select_config(LLAMA.shape, H100) == ENTRY.config
        assert select_config(LLAMA.shape, H100, implementation="mosaic_gpu") == ENTRY.config

    @pytest.mark.parametrize(
        "change", [{"num_tokens": 257}, {"num_heads": 64}, {"page_size": 32}, {"dtype": "float16"}]
    )
    def test_it_asks_the_heuristic_for_any_other(self, change: dict[str, Any]) -> None:
        if "dtype" in change:
            change = change | {"kv_dtype": "float16"}
        shape = replace(LLAMA.shape, **change)
        assert select_config(shape, H100) == select_config(shape, replace(H100, kind=""))

    def test_another_implementation_and_device_keep_their_heuristics(self) -> None:
        assert isinstance(select_config(LLAMA.shape, H100, implementation="triton"), TritonConfig)
        h200 = replace(H100, kind="NVIDIA H200")
        assert select_config(LLAMA.shape, h200) != ENTRY.config
        assert select_config(LLAMA.shape, H100, implementation="xla") == ReferenceConfig()


class TestCommand:
    """``python -m pallas_kernels.autotune``."""

    def test_without_a_gpu_it_says_so(self, capsys: pytest.CaptureFixture[str]) -> None:
        if jax.default_backend() != "cpu":
            pytest.skip("there is a GPU here")
        assert autotune.main([]) == 2
        assert "no GPU" in capsys.readouterr().err

    def test_an_unknown_spec_is_refused_with_the_names(self) -> None:
        with pytest.raises(ValueError, match=r"spec='no such'.*Llama-3\.1-8B, 256 decodes"):
            find_specs(("no such",))

    def test_the_file_grows_by_each_spec(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # Measurements and arrays are of a GPU's size: only their results are put in here.
        def tune(spec: Any, configs: Any, inputs: Any, **_: Any) -> tuple[Any, ...]:
            seconds = [2e-5, 1e-5] + [3e-5] * (len(configs) - 2)
            return tuple(
                autotune.Candidate(config=config, seconds=duration)
                for config, duration in zip(configs, seconds, strict=True)
            )

        monkeypatch.setattr(autotune, "tune", tune)
        monkeypatch.setattr(autotune, "make_inputs", lambda spec, mean_keys: None)
        output = tmp_path / "deep" / "gpu.json"
        specs = find_specs(("Llama-2-70B TP8",))
        for spec in specs:
            autotune.tune_all([spec], H100, output, mean_keys=8, rounds=1)
        file = read_tuned(output)
        assert [entry.shape for entry in file.entries] == [spec.shape for spec in specs]
        assert file.device_kind == H100.kind
        assert file.versions["jax"] == jax.__version__
        heuristic = specs[0].config(replace(H100, kind=""))
        assert isinstance(heuristic, HopperConfig)
        second = autotune.candidates(specs[0].shape, H100, heuristic)[1]
        assert file.find(specs[0].shape, "mosaic_gpu") == second
        assert "10.0 µs, heuristic 20.0 µs" in capsys.readouterr().out


class TestSpecs:
    """The shapes as arguments."""

    @pytest.mark.parametrize("target", [H100, A100], ids=lambda target: target.kind)
    def test_every_spec_gets_a_kernel(self, target: Any) -> None:
        for spec in attention_specs():
            assert not isinstance(spec.config(target), ReferenceConfig), spec.name

    def test_names_are_different(self) -> None:
        names = [spec.name for spec in attention_specs()]
        assert len(set(names)) == len(names)

    def test_heads_are_spread_over_an_axis_of_a_mesh(self) -> None:
        mesh = jax.sharding.AbstractMesh((8,), ("tensor",))
        spec = find_specs(("Llama-3.1-8B TP8, 256",))[0]
        given = spec.arguments(spec.config(H100), mesh=mesh, heads_axis="tensor")  # pyright: ignore[reportArgumentType]
        assert given.q.shape == (256, 32, 128)
        assert given.k_pages.shape[1] == 8
        assert given.q.sharding.shard_shape(given.q.shape) == (256, 4, 128)
        units = given.work.units
        assert units.sharding.is_fully_replicated

    def test_an_axis_without_a_mesh_is_refused(self) -> None:
        with pytest.raises(ValueError, match="heads_axis='tensor'"):
            LLAMA.arguments(LLAMA.config(H100), heads_axis="tensor")

    def test_arguments_have_what_the_spec_says(self) -> None:
        spec = find_specs(("fp8 pages",))[0]
        given = spec.arguments(spec.config(H100))
        assert given.k_pages.dtype == jnp.float8_e4m3fn
        assert given.k_scales is not None
        assert given.sinks is None
        sinks = find_specs(("gpt-oss",))[0]
        assert sinks.arguments(sinks.config(A100)).sinks.shape == (64,)

"""The log's first line brings up the same engine on any machine."""

from __future__ import annotations

import json

import pytest

from fastgen_jax.batching import StepShape
from fastgen_jax.config import EngineConfig, resolve_config
from fastgen_jax.engine_setup import EngineSetup
from fastgen_jax.errors import ReplayError
from fastgen_jax.replaying.header import LoggedModel, RunHeader
from fastgen_jax.sampling.row_limits import RowLimits
from fastgen_jax.scheduling.config import SchedulerConfig

SETUP = EngineSetup(
    scheduler=SchedulerConfig(
        token_budget=64,
        max_num_seqs=8,
        max_step_rows=8,
        max_model_len=128,
        block_size=16,
        num_blocks=77,
        step_sizes=(8, 64),
    ),
    shapes=(StepShape(8, 8), StepShape(64, 8)),
    limits=RowLimits(max_num_seqs=8, max_model_len=128, vocab_size=300),
    eos_token_ids=(2, 5),
    seed=3,
)
CONFIG = EngineConfig(
    token_budget=64,
    max_num_seqs=8,
    block_size=16,
    seed=3,
    compile_in_background=True,
    replay_log="log.jsonl",
)


def header() -> RunHeader:
    return RunHeader.of(
        SETUP,
        CONFIG.policy,
        version="9.9",
        has_tokenizer=True,
        model=LoggedModel(name="model.gguf", digest="abc"),
        config=CONFIG,
        resolved=resolve_config(CONFIG, platform="cpu", model_max_len=128),
        machine={"jax": "1.0"},
    )


def test_a_header_survives_json() -> None:
    written = header()
    found = RunHeader.from_data(json.loads(json.dumps(written.to_data())), path="log.jsonl")
    assert found.setup == SETUP
    assert json.dumps(found.to_data()) == json.dumps(written.to_data())
    assert found.machine["jax"] == "1.0"
    assert found.model == LoggedModel(name="model.gguf", digest="abc")


def test_what_a_machine_would_choose_is_taken_from_the_log() -> None:
    written = json.loads(json.dumps(header().to_data()))
    config = RunHeader.from_data(written, path="").engine_config(show_progress=False)
    resolved = resolve_config(CONFIG, platform="cpu", model_max_len=128)
    assert config.step_shapes == resolved.step_shapes
    assert config.num_kv_blocks == 77
    assert config.max_model_len == 128
    assert config.dtype == "float32"
    assert config.max_chained_steps == resolved.max_chained_steps
    assert config.seed == 3
    assert not config.compile_in_background
    assert config.replay_log is None, "replaying a log would overwrite it"


def test_an_engine_without_a_model_has_no_settings() -> None:
    fake = RunHeader.of(SETUP, "fcfs", version="9.9", has_tokenizer=False)
    with pytest.raises(ReplayError, match="--simulate"):
        fake.engine_config(show_progress=False)


def test_another_format_is_refused() -> None:
    with pytest.raises(ReplayError, match=r"format 7 of fastgen_jax 9\.9"):
        RunHeader.from_data(header().to_data() | {"format": 7}, path="log.jsonl")

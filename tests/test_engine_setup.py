"""A setup survives JSON, and builds the engine that it describes."""

from __future__ import annotations

import json

import pytest

from fastgen_jax.engine_setup import EngineSetup
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.testing import FakeEngine, fake_engine
from tests.replaying.test_header import SETUP


def test_a_setup_survives_json() -> None:
    assert EngineSetup.from_data(json.loads(json.dumps(SETUP.to_data()))) == SETUP


@pytest.mark.parametrize("name", ["scheduler", "shapes", "limits", "eos_token_ids", "seed"])
def test_what_is_missing_is_an_error(name: str) -> None:
    data = SETUP.to_data()
    del data[name]
    with pytest.raises(KeyError, match=name):
        EngineSetup.from_data(data)


def test_two_engines_of_one_setup_draw_the_same_seeds() -> None:
    executor = fake_engine(max_num_seqs=8, max_model_len=128).executor
    seeds: list[int] = []
    for _ in range(2):
        engine = SETUP.build(FakeEngine, executor=executor, policy="fcfs", tokenizer=None)
        assert isinstance(engine, FakeEngine)
        assert engine.scheduler.config == SETUP.scheduler
        (completion,) = engine.submit([1, 2], SamplingParams())
        seeds.append(completion.request.seed)
    assert seeds[0] == seeds[1]

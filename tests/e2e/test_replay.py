"""A run of a real model, logged and replayed: by the model, and with the log's own tokens."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from fastgen_jax import LLM, FinishReason, SamplingParams, replay
from fastgen_jax.completion import Completion
from fastgen_jax.errors import ReplayError
from tests.e2e.conftest import TINY_MODEL

BYTES = 256
NUM_REQUESTS = 200


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a tokenizer whose ids are bytes, so that stop strings work."""
    directory = tmp_path_factory.mktemp("tiny_llama")
    for path in TINY_MODEL.iterdir():
        shutil.copy(path, directory)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>"])
    backend.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<bos>", "eos_token": "<eos>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def params(rng: random.Random, tokenizer_texts: list[str]) -> SamplingParams:
    """Greedy, seeded or neither, with every way to end."""
    temperature = rng.choice((0.0, 0.7, 1.0))
    return SamplingParams(
        temperature=temperature,
        n=2 if temperature and rng.random() < 0.2 else 1,
        seed=rng.choice((None, 3)),
        top_p=rng.choice((1.0, 0.9)),
        frequency_penalty=rng.choice((0.0, 0.5)),
        max_tokens=rng.randint(1, 40),
        stop_token_ids=rng.choice((None, [rng.randrange(BYTES), rng.randrange(BYTES)])),
        stop=rng.choice((None, rng.sample(tokenizer_texts, 4))),
        logprobs=rng.choice((None, None, 2)),
        ignore_eos=rng.random() < 0.5,
    )


@pytest.fixture(scope="module")
def log(
    model: Path, tiny_settings: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two hundred requests, submitted and aborted between steps, in a pool that is too small."""
    path = tmp_path_factory.mktemp("log") / "run.jsonl"
    rng = random.Random(1)
    settings: dict[str, Any] = {
        **tiny_settings,
        "num_kv_blocks": 20,
        "max_model_len": 96,
        "max_chained_steps": 3,
        "replay_log": str(path),
    }
    completions: list[Completion] = []
    with LLM(model, **settings) as llm:
        engine = llm.engine
        assert llm.tokenizer is not None
        texts = [text for i in range(BYTES) if "\ufffd" not in (text := llm.tokenizer.decode([i]))]
        shared = [rng.randrange(BYTES) for _ in range(24)]
        for number in range(NUM_REQUESTS):
            prompt = [rng.randrange(BYTES) for _ in range(rng.randint(1, 30))]
            beginning = shared if rng.random() < 0.3 else []
            completions += engine.submit([*beginning, *prompt], params(rng, texts))
            for _ in range(rng.choice((0, 1, 4, 12))):
                engine.step()
            alive = [one.request for one in completions if not one.request.is_finished]
            if alive and number % 9 == 0:
                engine.abort(rng.choice(alive))
        while engine.has_work:
            engine.step()
        metrics = llm.metrics
    assert metrics.scheduler.num_preemptions > 10
    assert metrics.scheduler.num_hit_tokens > 200
    stops = {type(one.request.stop_reason) for one in completions}
    assert stops == {int, str, type(None)}
    reasons = {one.request.finish_reason for one in completions}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT}
    assert '"chain_length":3' in path.read_text()
    return path


@pytest.mark.parametrize("simulate", [False, True], ids=["by the model", "simulated"])
def test_nothing_differs(log: Path, simulate: bool) -> None:
    report = replay(log, simulate=simulate)
    assert report.difference is None, str(report)
    assert report.notes == ()
    assert report.num_events == len(log.read_text().splitlines()) - 1
    assert report.num_requests > NUM_REQUESTS
    assert report.num_preemptions > 10
    assert report.is_simulated is simulate


def test_a_changed_token_is_named(log: Path, tmp_path: Path) -> None:
    lines = log.read_text().splitlines()
    place = next(i for i in range(len(lines) // 2, len(lines)) if '"tokens","step"' in lines[i])
    event = json.loads(lines[place])
    row = next(i for i, token in enumerate(event["tokens"]) if token is not None)
    token = event["tokens"][row]
    event["tokens"][row] = (token + 1) % BYTES
    plan = next(e for e in map(json.loads, lines) if e.get("step") == event["step"])
    lines[place] = json.dumps(event)
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(lines) + "\n")
    found = replay(path).difference
    assert str(found) == (
        f"line {place + 1}, step {event['step']}: request {plan['requests'][row]} got token "
        f"{token}, the log says {(token + 1) % BYTES}"
    )
    later = replay(path, simulate=True).difference
    assert later is not None
    assert later.line > place + 1


def test_the_model_may_have_moved(model: Path, log: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    report = replay(log, model=moved, until_step=20)
    assert (report.difference, report.notes) == (None, ())


def test_another_model_of_the_same_sizes_is_replayed_with_a_note(
    model: Path, log: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-4096:] = bytes(4096)
    (other / "model.safetensors").write_bytes(weights)
    report = replay(log, model=other, until_step=20)
    assert "The model isn't the one" in report.notes[0]


def test_a_simulation_needs_the_models_tokenizer(log: Path, tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="stop strings"):
        replay(log, simulate=True, model=tmp_path / "gone")
    with pytest.raises(ReplayError, match="the model has none"):
        replay(log, simulate=True, model=TINY_MODEL)


def test_a_model_with_another_vocabulary_is_refused(log: Path, tmp_path: Path) -> None:
    lines = log.read_text().splitlines()
    header = json.loads(lines[0])
    header["setup"]["limits"]["vocab_size"] += 1
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join([json.dumps(header), *lines[1:]]))
    with pytest.raises(ReplayError, match="give the model of the log"):
        replay(path)

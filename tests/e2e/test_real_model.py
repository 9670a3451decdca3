"""SmolLM2-135M-Instruct through the whole path: equal to transformers, and its text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastgen_jax import LLM, FinishReason, SamplingParams
from fastgen_jax.pipeline import Pipeline
from tests.e2e.conftest import REFERENCES
from tests.e2e.greedy_check import check_greedy

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path, compilation_cache: Path) -> Iterator[LLM]:
    """The real model with the CPU's default shapes."""
    with LLM(
        smollm2_gguf,
        dtype="float32",
        num_kv_blocks=300,
        max_model_len=1024,
        compilation_cache_dir=str(compilation_cache),
        show_progress=False,
    ) as llm:
        yield llm


@pytest.fixture(scope="module")
def reference_prompts() -> list[dict[str, Any]]:
    """12 prompts of 5 to 299 tokens and transformers' 48 greedy tokens for each."""
    return json.loads((REFERENCES / "smollm2_greedy.json").read_text())["prompts"]


def test_greedy_tokens_equal_transformers(
    smollm2: LLM, reference_prompts: list[dict[str, Any]]
) -> None:
    params = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True, logprobs=1)
    outputs = smollm2.generate([p["prompt_token_ids"] for p in reference_prompts], params)
    check_greedy(outputs, reference_prompts)


@pytest.mark.slow
def test_a_request_alone_equals_itself_among_31_others(
    smollm2: LLM, reference_prompts: list[dict[str, Any]]
) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    ids = [p["prompt_token_ids"] for p in reference_prompts]
    crowd = [ids[i % len(ids)][: 5 + 7 * i] for i in range(32)]
    together = smollm2.generate(crowd, params)
    for i in (0, 13, 31):
        alone = smollm2.generate(crowd[i], params)[0].outputs[0].token_ids
        assert together[i].outputs[0].token_ids == alone


def test_chat_answers(smollm2: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=32)
    output = smollm2.chat(QUESTION, params)[0].outputs[0]
    assert output.text == "The capital of France is Paris."
    assert output.finish_reason is FinishReason.STOP
    assert output.stop_reason is None
    streamed = list(smollm2.stream(smollm2.chat_prompt(QUESTION), params))
    assert "".join(delta.text for delta in streamed) == output.text
    assert streamed[-1].finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"stop": "is P"}, "The capital of France "),
        ({"stop": ["Rome", " France"]}, "The capital of"),
        ({"stop": "is P", "include_stop_str_in_output": True}, "The capital of France is P"),
    ],
)
def test_stop_strings(values: dict[str, Any], text: str, smollm2: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=32, **values)
    output = smollm2.chat(QUESTION, params)[0].outputs[0]
    assert output.text == text
    assert output.finish_reason is FinishReason.STOP
    assert isinstance(output.stop_reason, str)
    deltas = list(smollm2.stream(smollm2.chat_prompt(QUESTION), params))
    assert "".join(delta.text for delta in deltas) == text


def test_bad_words_are_not_said(smollm2: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=24, bad_words=["Paris"])
    assert "Paris" not in smollm2.chat(QUESTION, params)[0].outputs[0].text


def test_special_tokens_are_left_out_unless_asked_for(smollm2: LLM) -> None:
    tokenizer = smollm2.tokenizer
    assert tokenizer is not None
    special = min(set(tokenizer.special_token_ids) - set(tokenizer.eos_token_ids))
    values: dict[str, Any] = {"temperature": 0, "max_tokens": 2, "logit_bias": {special: 100.0}}
    hidden = smollm2.chat(QUESTION, SamplingParams(**values))[0].outputs[0]
    shown = smollm2.chat(QUESTION, SamplingParams(**values, skip_special_tokens=False))[0]
    assert hidden.token_ids == shown.outputs[0].token_ids
    assert hidden.text == ""
    assert shown.outputs[0].text != ""


def test_pipeline_has_miis_habits(smollm2: LLM) -> None:
    pipe = Pipeline(smollm2)
    answers = pipe(["The capital of France is"], max_new_tokens=4, do_sample=False)
    assert str(answers[0]) == answers[0].generated_text
    assert answers[0].generated_length == 4
    assert answers[0].finish_reason == "length"
    full = pipe(
        "The capital of France is", max_new_tokens=4, do_sample=False, return_full_text=True
    )
    assert full[0].generated_text == "The capital of France is" + answers[0].generated_text

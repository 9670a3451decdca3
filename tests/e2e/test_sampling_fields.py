"""Every field of SamplingParams does something through the whole path, or is refused."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest

from fastgen_jax import LLM, FinishReason, SamplingParams
from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.outputs import RequestOutput
from tests.e2e.conftest import ReferencePrompt

BASE: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
DRAWN: dict[str, Any] = {"temperature": 1.5, "seed": 5, "max_tokens": 24, "ignore_eos": True}


@dataclass(frozen=True, slots=True)
class FieldCase:
    """A field, a value that must matter, and the parameters it is set beside."""

    name: str
    value: Any
    beside: dict[str, Any]


def case(name: str, value: Any, **beside: Any) -> FieldCase:
    """A case beside greedy parameters unless others are given."""
    return FieldCase(name, value, beside or BASE)


# With a tokenizer come stop, bad_words, include_stop_str_in_output and skip_special_tokens; they
# are walked on the real model in test_real_model.py.
TEXT_FIELDS = {"stop", "bad_words", "include_stop_str_in_output", "skip_special_tokens"}
CASES = [
    case("n", 2, **DRAWN),
    case("temperature", 2.5, **DRAWN),
    case("top_k", 2, **DRAWN),
    case("top_p", 0.3, **DRAWN),
    case("min_p", 0.5, **DRAWN),
    case("seed", 6, **DRAWN),
    case("repetition_penalty", 5.0, temperature=0.0, max_tokens=60, ignore_eos=True),
    case("presence_penalty", 2.0, temperature=0.0, max_tokens=60, ignore_eos=True),
    case("frequency_penalty", 2.0, temperature=0.0, max_tokens=60, ignore_eos=True),
    case("logit_bias", {3: 100.0}),
    case("allowed_token_ids", [3, 4]),
    case("min_tokens", 4, temperature=0.0, max_tokens=8, ignore_eos=True, stop_token_ids="first"),
    case("logprobs", 3),
    case("prompt_logprobs", 3),
    case("stop_token_ids", "first"),
    case("ignore_eos", False, temperature=0.0, max_tokens=8, logit_bias="eos"),
    case("max_tokens", 3),
]


def outcome(output: RequestOutput) -> tuple[object, ...]:
    """All that a parameter may change."""
    return (
        output.prompt_logprobs is not None,
        tuple((c.token_ids, c.logprobs is not None, c.finish_reason) for c in output.outputs),
    )


@pytest.mark.parametrize("field", CASES, ids=lambda c: c.name)
def test_the_field_changes_the_outcome(
    field: FieldCase, tiny_llm: LLM, tiny_prompts: list[ReferencePrompt]
) -> None:
    prompt = tiny_prompts[1]
    eos = next(iter(tiny_llm.engine._intake._eos_token_ids), None)
    assert eos is not None, "the tiny checkpoint names an EOS token"
    stand_ins = {"first": [prompt.token_ids[0]], "eos": {eos: 100.0}}

    def run(values: dict[str, Any]) -> tuple[object, ...]:
        found = {k: stand_ins.get(v, v) if isinstance(v, str) else v for k, v in values.items()}
        output = tiny_llm.generate(prompt.prompt_token_ids, SamplingParams(**found))[0]
        return outcome(output)

    plain = {"ignore_eos": True, **field.beside}
    assert run({**plain, field.name: field.value}) != run(plain)


def test_no_field_is_left_out() -> None:
    walked = {field.name for field in CASES} | TEXT_FIELDS
    assert walked == {field.name for field in fields(SamplingParams)}


def test_min_tokens_holds_stop_tokens_back(
    tiny_llm: LLM, tiny_prompts: list[ReferencePrompt]
) -> None:
    prompt = tiny_prompts[1]
    params = SamplingParams(
        temperature=0, max_tokens=8, stop_token_ids=[prompt.token_ids[0]], min_tokens=4
    )
    found = tiny_llm.generate(prompt.prompt_token_ids, params)[0].outputs[0].token_ids
    assert len(found) >= 4
    assert prompt.token_ids[0] not in found[:4]


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], BASE, "is empty"),
        ([999], BASE, r"prompt_token_ids=999.*vocabulary of 258"),
        ([-1], BASE, r"prompt_token_ids=-1"),
        ([1] * 256, BASE, r"num_prompt_tokens=256.*257 positions, max_model_len is 256"),
        ([1] * 250, {**BASE, "max_tokens": 7}, r"max_tokens=7.*at most 6"),
        ("text", BASE, "no tokenizer"),
        ([1], {**BASE, "logprobs": 21}, r"logprobs=21.*max_logprobs=20"),
        ([1], {**BASE, "logit_bias": {999: 1.0}}, r"logit_bias=\[999\]"),
        ([1], {**BASE, "stop_token_ids": [258]}, r"stop_token_ids=\[258\]"),
        ([1], {**BASE, "allowed_token_ids": [258]}, r"allowed_token_ids=\[258\]"),
        ([1], {**BASE, "stop": "x"}, r"stop='x'.*tokenizer"),
        ([1], {**BASE, "bad_words": ["x"]}, r"bad_words=\['x'\].*tokenizer"),
    ],
)
def test_bad_requests_are_refused_and_nothing_is_lost(
    prompt: Any, params: dict[str, Any], message: str, tiny_llm: LLM
) -> None:
    from fastgen_jax import FastGenError

    good = SamplingParams(**BASE)
    bad = SamplingParams(**params)
    with pytest.raises(FastGenError, match=message) as caught:
        tiny_llm.generate([[1, 2], prompt, [3]], [good, bad, good])
    assert "prompt 1 of 3; nothing was queued" in getattr(caught.value, "__notes__", [])
    assert tiny_llm.metrics.scheduler.num_waiting == 0
    outputs = tiny_llm.generate([[1, 2], prompt, [3]], [good, bad, good], return_errors=True)
    reasons = [output.outputs[0].finish_reason for output in outputs]
    assert reasons == [FinishReason.LENGTH, FinishReason.ERROR, FinishReason.LENGTH]
    assert outputs[1].outputs[0].error


def test_one_params_per_prompt(tiny_llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="has 1 entries for 2 prompts"):
        tiny_llm.generate([[1], [2]], [SamplingParams(**BASE)])

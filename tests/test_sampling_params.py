"""What SamplingParams refuses, field by field."""

from __future__ import annotations

from typing import Any

import pytest

from fastgen_jax import SamplingParams
from fastgen_jax.errors import InvalidRequestError

REFUSED: list[tuple[str, Any]] = [
    ("n", 0),
    ("n", True),
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", "hot"),
    ("top_k", -2),
    ("top_k", 1.5),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("min_p", -0.1),
    ("repetition_penalty", 0.0),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("logit_bias", {1: 101.0}),
    ("logit_bias", {-1: 1.0}),
    ("logit_bias", {1: float("nan")}),
    ("allowed_token_ids", []),
    ("allowed_token_ids", [-1]),
    ("bad_words", [""]),
    ("bad_words", "word"),
    ("min_tokens", -1),
    ("min_tokens", 17),
    ("seed", -1),
    ("seed", 2**63),
    ("logprobs", -1),
    ("prompt_logprobs", 1.0),
    ("stop", [""]),
    ("stop", [3]),
    ("stop_token_ids", ["3"]),
    ("ignore_eos", 1),
    ("max_tokens", 0),
    ("include_stop_str_in_output", "yes"),
    ("skip_special_tokens", None),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_values_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.field == name


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"temprature=0.*known ones are n, temperature"):
        SamplingParams.from_dict({"temprature": 0})


def test_greedy_completions_would_be_equal() -> None:
    with pytest.raises(InvalidRequestError, match=r"n=2.*temperature above 0"):
        SamplingParams(n=2, temperature=0)


def test_defaults_are_neutral() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)
    assert params.repetition_penalty == 1.0
    assert not params.is_greedy
    assert params.stop_strings == ()
    assert SamplingParams(stop="x").stop_strings == ("x",)

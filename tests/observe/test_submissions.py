"""What was asked for comes back from its data as it was."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.observe.submissions import submission_from_data, submission_to_data
from fastgen_jax.request import Request
from fastgen_jax.sampling_params import SamplingParams

EVERYTHING = SamplingParams(
    n=2,
    temperature=0.7,
    top_k=5,
    top_p=0.9,
    min_p=0.1,
    repetition_penalty=1.1,
    presence_penalty=0.3,
    frequency_penalty=-0.2,
    logit_bias={3: 1.5, 4: -2.0},
    allowed_token_ids=[1, 2, 3, 4],
    bad_words=["no"],
    min_tokens=2,
    seed=2**60,
    logprobs=2,
    prompt_logprobs=1,
    stop=["a", "b"],
    stop_token_ids=[4],
    ignore_eos=True,
    max_tokens=40,
    include_stop_str_in_output=True,
    skip_special_tokens=False,
)


def request(params: SamplingParams, **values: object) -> Request:
    return Request(
        request_id="4-0" if params.n > 1 else "4",
        prompt_token_ids=(1, 2),
        params=params,
        max_output_tokens=3,
        seed=9,
        arrival_time=0.25,
        **values,  # type: ignore[arg-type]
    )


def through_json(one: Request) -> dict[str, object]:
    return json.loads(json.dumps(submission_to_data(one)))


def test_defaults_are_left_out() -> None:
    assert through_json(request(SamplingParams())) == {
        "request": "4",
        "arrival": 0.25,
        "seed": 9,
        "prompt": [1, 2],
        "params": {},
    }


def test_everything_survives() -> None:
    default = SamplingParams()
    same = [
        f.name for f in fields(default) if getattr(EVERYTHING, f.name) == getattr(default, f.name)
    ]
    assert not same, "a field at its default would survive without being written"
    targets = LatencyTargets(ttft=0.5, tpot=0.1)
    data = through_json(request(EVERYTHING, priority=2, cache_salt="red", targets=targets))
    found = submission_from_data(data)
    assert found.params == EVERYTHING
    assert (found.priority, found.cache_salt, found.targets) == (2, "red", targets)
    assert (found.arrival, found.prompt_token_ids) == (0.25, (1, 2))


@given(
    st.builds(
        SamplingParams,
        max_tokens=st.one_of(st.none(), st.integers(1, 99)),
        stop=st.one_of(st.none(), st.text(min_size=1), st.lists(st.text(min_size=1))),
        logit_bias=st.one_of(
            st.none(), st.dictionaries(st.integers(0, 99), st.floats(-100, 100), max_size=3)
        ),
        temperature=st.floats(0, 1e6),
        stop_token_ids=st.one_of(st.none(), st.lists(st.integers(0, 2**31))),
    )
)
def test_any_parameters_survive(params: SamplingParams) -> None:
    assert submission_from_data(through_json(request(params))).params == params


@pytest.mark.parametrize("name", ["arrival", "prompt", "params"])
def test_what_is_missing_is_an_error(name: str) -> None:
    data = through_json(request(SamplingParams()))
    del data[name]
    with pytest.raises(KeyError, match=name):
        submission_from_data(data)

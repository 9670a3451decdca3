"""Limits, the packed row, and the state on the device."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fastgen_jax.errors import ConfigError, InvalidRequestError
from fastgen_jax.sampling import (
    RowLimits,
    append_tokens,
    check_limits,
    init_row_state,
    pack_row,
    sample,
    wants_logprobs,
    write_row,
)
from fastgen_jax.sampling_params import SamplingParams

LIMITS = RowLimits(
    max_num_seqs=4,
    max_model_len=10,
    vocab_size=70,
    max_logprobs=5,
    max_logit_bias=2,
    max_bad_words=2,
    max_bad_word_len=3,
    max_stop_ids=3,
)


def pack(params=None, **changes):
    request = {"token_ids": [4, 5, 6], "prompt_len": 2, "params": params or SamplingParams()}
    return pack_row(LIMITS, **{**request, "seed": 1, **changes})


def row_of(state, row):
    """A device row's fields by name, as lists and numbers."""
    words = np.concatenate([state.token_ids[row], state.settings[row]])
    fields = {}
    for field in LIMITS.fields:
        values = words[field.start : field.stop].view(field.dtype).reshape(field.shape)
        fields[field.name] = values.tolist()
    return SimpleNamespace(**fields)


def test_a_written_row_holds_the_request_and_leaves_the_others():
    params = SamplingParams(
        temperature=0.5, top_k=9, top_p=0.25, min_p=0.125, repetition_penalty=1.5,
        presence_penalty=-1.0, frequency_penalty=0.75, logit_bias={69: -2.5},
        allowed_token_ids=[0, 31, 32, 69], min_tokens=3, stop_token_ids=[8, 1], logprobs=4,
    )  # fmt: skip
    packed = pack(params, seed=2**40 + 7, eos_token_ids=[1], bad_word_ids=[[3], [1, 2, 3]])
    neutral = init_row_state(LIMITS)
    state = jax.jit(write_row)(neutral, np.int32(2), packed)
    row = row_of(state, 2)
    assert row.token_ids == [4, 5, 6, 0, 0, 0, 0, 0, 0, 0]
    assert (row.prompt_len, row.min_position, row.seed) == (2, 5, [2**8, 7])
    assert (row.temperature, row.top_k, row.top_p, row.min_p) == (0.5, 9, 0.25, 0.125)
    assert (row.repetition_penalty, row.presence_penalty) == (1.5, -1.0)
    assert (row.frequency_penalty, row.num_logprobs, row.has_allowed) == (0.75, 4, 1)
    assert row.allowed_mask == [2**31 + 1, 1, 2**5]
    assert (row.bias_ids, row.bias_values) == ([69, -1], [-2.5, 0.0])
    assert row.bad_words == [[-1, -1, 3], [1, 2, 3]]
    assert row.stop_ids == [1, 8, -1]
    assert (row.has_bias, row.has_bad_words) == (1, 1)
    assert state.prompt_len.tolist() == [0, 0, 2, 0]
    for before, after in zip(jax.tree.leaves(neutral), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(np.delete(before, 2, 0), np.delete(after, 2, 0))


def test_a_plain_row_replaces_everything_of_the_one_before():
    write = jax.jit(write_row)
    params = SamplingParams(allowed_token_ids=[1], logit_bias={1: 2.0}, min_tokens=2)
    dirty = write(init_row_state(LIMITS), np.int32(0), pack(params, eos_token_ids=[1]))
    plain = pack(SamplingParams(temperature=0.0))
    clean = write(init_row_state(LIMITS), np.int32(0), plain)
    jax.tree.map(np.testing.assert_array_equal, write(dirty, np.int32(0), plain), clean)


@pytest.mark.parametrize("params", [{"temperature": 0.0, "top_k": 5, "top_p": 0.5}, {"top_k": 1}])
def test_greedy_makes_the_filters_neutral(params):
    state = write_row(init_row_state(LIMITS), np.int32(0), pack(SamplingParams(**params)))
    row = row_of(state, 0)
    assert (row.temperature, row.top_k, row.top_p) == (0.0, 70, 1.0)


def test_a_row_of_other_limits_is_refused():
    with pytest.raises(ValueError, match="words"):
        write_row(init_row_state(LIMITS), np.int32(0), np.append(pack(), np.int32(0)))


def test_appended_tokens_go_to_valid_rows_only_and_failures_become_zero():
    append = jax.jit(append_tokens, donate_argnums=0)
    rows, positions = np.int32([3, 1, 99, 0]), np.int32([9, 0, 4, 2])
    tokens, is_valid = np.int32([11, -1, 13, 14]), np.array([True, True, False, False])
    state = init_row_state(LIMITS)
    state = append(state, rows, positions, np.int32([7, 7, 7, 7]), is_valid)
    history = np.asarray(append(state, rows, positions, tokens, is_valid).token_ids)
    expected = np.zeros((4, 10), np.int32)
    expected[3, 9] = 11
    np.testing.assert_array_equal(history, expected)


@pytest.mark.parametrize(
    ("params", "words", "field", "remedy"),
    [
        ({"logprobs": 6}, (), "logprobs", "max_logprobs"),
        ({"prompt_logprobs": 6}, (), "prompt_logprobs", "max_logprobs"),
        ({"logit_bias": {1: 1.0, 2: 1.0, 3: 1.0}}, (), "logit_bias", "max_logit_bias"),
        ({"logit_bias": {70: 1.0}}, (), "logit_bias", "69"),
        ({"allowed_token_ids": [1, 70]}, (), "allowed_token_ids", "69"),
        ({"stop_token_ids": [70]}, (), "stop_token_ids", "69"),
        ({"min_tokens": 1, "stop_token_ids": [1, 2]}, (), "stop_token_ids", "max_stop_ids"),
        ({"bad_words": ["a"]}, [[1], [2], [3]], "bad_words", "max_bad_words"),
        ({"bad_words": ["a"]}, [[1, 2, 3, 4]], "bad_words", "max_bad_word_len"),
        ({"bad_words": ["a"]}, [[]], "bad_words", "remove"),
        ({"bad_words": ["a"]}, [[70]], "bad_words", "69"),
    ],
)
def test_what_a_row_cannot_hold_is_refused(params, words, field, remedy):
    params = SamplingParams(**params)
    with pytest.raises(InvalidRequestError, match=f"^{field}=.*{remedy}") as caught:
        check_limits(params, [5, 6], words, LIMITS)
    assert caught.value.field == field
    with pytest.raises(InvalidRequestError):
        pack(params, eos_token_ids=[5, 6], bad_word_ids=words)


def test_rows_that_want_logprobs_are_valid_and_asked_for_them():
    state = init_row_state(LIMITS)
    for row, logprobs in enumerate((None, 0, 5)):
        packed = pack(SamplingParams(logprobs=logprobs))
        state = write_row(state, np.int32(row), packed)
    rows, is_valid = np.int32([2, 99, 1, 0, 2]), np.array([True, False, True, True, False])
    wants = jax.jit(wants_logprobs)(state, rows, is_valid)
    assert wants.tolist() == [True, False, True, False, False]


def test_stop_tokens_need_no_room_without_min_tokens():
    check_limits(SamplingParams(stop_token_ids=range(9)), [60], (), LIMITS)


def test_a_history_beyond_the_model_length_is_refused():
    with pytest.raises(InvalidRequestError, match="max_model_len"):
        pack(token_ids=[1] * 11)


@pytest.mark.parametrize("sizes", [{"max_num_seqs": 0}, {"max_logprobs": 71}, {"max_stop_ids": -1}])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ConfigError, match=next(iter(sizes))):
        dataclasses.replace(LIMITS, **sizes)


def test_empty_tables_work():
    limits = dataclasses.replace(
        LIMITS, max_logprobs=0, max_logit_bias=0, max_bad_words=0, max_stop_ids=0
    )
    packed = pack_row(
        limits, token_ids=[1], prompt_len=1, params=SamplingParams(temperature=0), seed=0
    )
    state = write_row(init_row_state(limits), np.int32(0), packed)
    rows = np.arange(4, dtype=np.int32)
    logits = np.eye(4, 70, dtype=np.float32)
    assert sample(logits, state, rows, rows + 1, rows >= 0).tolist() == [0, 1, 2, 3]

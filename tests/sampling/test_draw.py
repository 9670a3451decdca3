"""The draw: its random words, its inverse CDF, and what it must not depend on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.random import threefry_2x32

from fastgen_jax.sampling import RowLimits, init_row_state, pack_row, sample, write_row
from fastgen_jax.sampling.draw import invert_cdf
from fastgen_jax.sampling.threefry import threefry2x32
from fastgen_jax.sampling_params import SamplingParams

LARGEST_WORD = 2**24 - 1


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4))
def test_threefry_equals_the_one_of_jax(words):
    key, counter = np.array(words[:2], np.uint32), np.array(words[2:], np.uint32)
    expected = threefry_2x32((key[0], key[1]), jnp.asarray(counter))
    ours = threefry2x32((key[:1], key[1:]), (counter[:1], counter[1:]))
    assert [int(word[0]) for word in ours] == np.asarray(expected).tolist()


@pytest.mark.parametrize("scale", [1.0, 1e-30, 3.0e5])
def test_zero_weights_are_never_drawn(scale):
    invert = jax.jit(invert_cdf)
    rng = np.random.default_rng(0)
    words = np.array([0, 1, LARGEST_WORD - 1, LARGEST_WORD], np.uint32)
    for positive in ([0], [129], [64], [3, 77], [0, 129], rng.choice(130, 60, replace=False)):
        weights = np.zeros((4, 130), np.float32)
        weights[:, positive] = rng.random(len(positive)).astype(np.float32) * scale + scale * 1e-8
        index = np.asarray(invert(weights, words))
        assert (weights[np.arange(4), index] > 0).all()
        assert index[0] == np.min(positive)
        assert len(positive) > 2 or index[3] == np.max(positive)


def test_the_inverse_cdf_has_the_exact_shares():
    weights = np.tile(np.float32([0.0, 0.125, 0.0, 0.5, 0.25, 0.125, 0.0]), (1024, 1))
    words = (np.arange(1024) * 2**14).astype(np.uint32)
    index = np.asarray(jax.jit(invert_cdf)(weights, words))
    assert np.bincount(index, minlength=7).tolist() == [0, 128, 0, 512, 256, 128, 0]


def test_a_draw_depends_on_seed_and_position_alone():
    limits = RowLimits(max_num_seqs=8, max_model_len=64, vocab_size=300)
    params = SamplingParams(top_k=100, top_p=0.95, repetition_penalty=1.1)
    rng = np.random.default_rng(5)
    logits = rng.normal(0, 1, (1, 300)).astype(np.float32)
    state = init_row_state(limits)
    write, step = jax.jit(write_row), jax.jit(sample)
    history = rng.integers(0, 300, 40).tolist()
    for row in range(8):
        seed, other = (2**63 + 5, params) if row in (1, 6) else (row, SamplingParams(min_p=0.1))
        packed = pack_row(limits, token_ids=history, prompt_len=9, params=other, seed=seed)
        state = write(state, np.int32(row), packed)

    def draw(rows, positions, values):
        arrays = np.asarray(rows, np.int32), np.asarray(positions, np.int32)
        return np.asarray(step(values, state, *arrays, np.ones(len(rows), bool)))

    alone = [int(draw([1], [position], logits)[0]) for position in range(10, 40)]
    assert len(set(alone)) > 10
    neighbours = rng.normal(0, 4, (7, 300)).astype(np.float32)
    for place, device_row in ((0, 6), (3, 1), (6, 6)):
        values, rows = neighbours.copy(), [0, 2, 3, 4, 5, 7, 0]
        values[place], rows[place] = logits[0], device_row
        tokens = [int(draw(rows, [position] * 7, values)[place]) for position in range(10, 40)]
        assert tokens == alone
    assert alone == [int(draw([6], [position], logits)[0]) for position in range(10, 40)]
    assert alone != [int(draw([0], [position], logits)[0]) for position in range(10, 40)]

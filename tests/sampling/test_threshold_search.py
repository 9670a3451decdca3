"""The thresholds of min_p, top-k and top-p equal those found by sorting."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastgen_jax.sampling import RowLimits, init_row_state, pack_row, write_row
from fastgen_jax.sampling.blocks import pad_to_blocks
from fastgen_jax.sampling.draw import weigh_tokens
from fastgen_jax.sampling.filters import keep_from
from fastgen_jax.sampling.reference import filter_reference
from fastgen_jax.sampling.row_settings import gather_settings
from fastgen_jax.sampling_params import SamplingParams

ROWS = 3


@pytest.fixture(scope="module", params=[64, 5003], ids=["plain", "candidates"])
def kept(request):
    """A function from logits and params to the kept tokens, for a small and a wide vocabulary."""
    limits = RowLimits(max_num_seqs=ROWS, max_model_len=8, vocab_size=request.param)
    write = jax.jit(write_row)

    @jax.jit
    def keep(logits, state):
        rows = jnp.arange(ROWS, dtype=jnp.int32)
        settings = gather_settings(state, rows, rows + 1, rows >= 0)
        padded = pad_to_blocks(logits, -jnp.inf)
        weights = weigh_tokens(padded, jnp.max(padded, axis=1), settings)
        threshold = keep_from(weights, jnp.sum(weights, axis=1), settings)
        return ((weights >= threshold[:, None]) & (weights > 0))[:, : logits.shape[1]]

    def run(logits, params):
        state = init_row_state(limits)
        for row, each in enumerate(params):
            packed = pack_row(limits, token_ids=[1], prompt_len=1, params=each, seed=0)
            state = write(state, np.int32(row), packed)
        return np.asarray(keep(logits, state))

    run.vocab_size = request.param
    return run


def shapes_of_logits(vocab_size):
    rng = np.random.default_rng(3)
    spread = rng.normal(0, 3, (ROWS, vocab_size))
    spiky = np.where(rng.random(spread.shape) < 30 / vocab_size, spread + 12, spread)
    clustered = np.sort(spread, axis=1)  # the likeliest are neighbours
    return {"spread": spread, "spiky": spiky, "clustered": clustered}


@pytest.mark.parametrize("shape", ["spread", "spiky", "clustered"])
def test_thresholds_equal_the_sorted_ones(kept, shape):
    logits = shapes_of_logits(kept.vocab_size)[shape].astype(np.float32)
    width = kept.vocab_size
    for fields in (
        {"top_k": 2},
        {"top_k": 50},
        {"top_k": 64},
        {"top_k": width - 1},
        {"top_k": width},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"top_k": 40, "min_p": 0.2},
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"top_p": 1e-9},
        {"top_p": 1.0},
        {"top_k": 20, "top_p": 0.8},
        {"top_k": width - 1, "top_p": 0.3},
        {"top_k": 30, "top_p": 0.7, "min_p": 0.01},
    ):
        for temperature in (0.5, 1.0, 3.0):
            params = SamplingParams(temperature=temperature, **fields)
            found = kept(logits, [params, SamplingParams(), params])
            assert found[1].all()
            for row in (0, 2):
                expected = filter_reference(logits[row].astype(np.float64), params) > 0
                differing = int((found[row] != expected).sum())
                # Sums in float32 may settle a boundary one or two of many tokens elsewhere.
                allowed = 2 if params.top_p > 0.99 and params.top_p < 1 else 0
                assert differing <= allowed, (fields, temperature, row)


def test_ties_at_the_threshold_are_kept(kept):
    logits = np.full((ROWS, kept.vocab_size), -30.0, np.float32)
    logits[:, [1, 9, 40, 60]] = 1.0
    logits[:, 30] = 2.0
    for params in (SamplingParams(top_k=2), SamplingParams(top_k=3), SamplingParams(top_p=0.5)):
        found = kept(logits, [params] * ROWS)
        assert all(np.flatnonzero(row).tolist() == [1, 9, 30, 40, 60] for row in found)
    everything = np.zeros_like(logits)
    for params in (SamplingParams(top_k=2), SamplingParams(top_p=0.5), SamplingParams(min_p=1.0)):
        assert kept(everything, [params] * ROWS).all()


def test_a_row_that_needs_the_full_search_changes_no_other(kept):
    shapes = shapes_of_logits(kept.vocab_size)
    logits = np.stack([shapes["spiky"][0], np.zeros(kept.vocab_size), shapes["spiky"][2]])
    params = [SamplingParams(top_k=5), SamplingParams(top_p=0.9), SamplingParams(top_p=0.5)]
    found = kept(logits.astype(np.float32), params)
    for row in (0, 2):
        exact = logits[row].astype(np.float32).astype(np.float64)
        expected = filter_reference(exact, params[row]) > 0
        np.testing.assert_array_equal(found[row], expected)
    assert found[1].all()

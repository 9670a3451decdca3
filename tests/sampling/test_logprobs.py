"""Log-probabilities of drawn and of prompt tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastgen_jax.sampling.blocks import pad_to_blocks, to_blocks
from fastgen_jax.sampling.logprobs import token_logprobs, top_tokens, wanted_logprobs
from fastgen_jax.sampling_params import SamplingParams


@pytest.mark.parametrize(("width", "k"), [(50, 4), (300, 1), (1000, 3), (1024, 8), (50, 50)])
def test_top_tokens_are_ordered_with_lower_ids_first(width, k):
    rng = np.random.default_rng(0)
    logits = rng.integers(-3, 4, (3, width)).astype(np.float32)  # many ties
    padded = pad_to_blocks(jnp.asarray(logits), -jnp.inf)
    ids, values = top_tokens(padded, jnp.max(to_blocks(padded), axis=-1), k)
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(logits, expected, 1))


@pytest.mark.parametrize("wanted", ["none", "some", "one", "all"])
def test_wanted_logprobs_are_those_of_each_token(wanted):
    tokens, width, vocab_size, group, k = 11, 6, 150, 4, 3
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(tokens, width)).astype(np.float32)
    head = rng.normal(size=(width, vocab_size)).astype(np.float32)
    targets = rng.integers(0, vocab_size, tokens).astype(np.int32)
    is_wanted = {
        "none": np.zeros(tokens, bool),
        "some": rng.random(tokens) < 0.5,
        "one": np.arange(tokens) == tokens - 1,
        "all": np.ones(tokens, bool),
    }[wanted]

    def to_logits(rows):
        assert rows.shape == (group, width)
        return rows @ head

    found = jax.jit(lambda *a: wanted_logprobs(to_logits, *a, group=group, k=k))(
        hidden, targets, is_wanted
    )
    expected = token_logprobs(jnp.asarray(hidden @ head), jnp.asarray(targets), k)
    for ours, whole in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours[is_wanted], whole[is_wanted], rtol=1e-4, atol=1e-5)
        assert not np.asarray(ours)[~is_wanted].any()


def test_no_alternatives_asked_for():
    logits = jnp.asarray(np.float32([[0.0, 1.0, 1.0]]))
    found = token_logprobs(logits, jnp.asarray(np.int32([0])), 0)
    assert found.top_ids.shape == (1, 0)
    assert int(found.rank[0]) == 3


@pytest.mark.parametrize("is_tied", [False, True])
def test_logprobs_equal_the_reference(bench, make_case, logits, is_tied):
    values = np.round(logits) + np.float32(0) if is_tied else logits  # -0.0 would follow 0.0
    case = make_case(SamplingParams(logprobs=3, temperature=0.5, top_k=20, logit_bias={9: 50.0}))
    expected = [bench.expect(row, case) for row in values]
    targets = np.int32([row.token_id for row in expected])
    found = jax.jit(token_logprobs, static_argnums=2)(values, targets, 5)
    assert found.rank.tolist() == [row.rank for row in expected]
    assert found.top_ids.tolist() == [row.top_ids for row in expected]
    np.testing.assert_allclose(found.chosen, [row.chosen_logprob for row in expected], 1e-5)
    np.testing.assert_allclose(found.top, [row.top_logprobs for row in expected], 1e-5)


def test_a_failed_row_harms_no_other():
    logits = np.random.default_rng(4).normal(size=(3, 200)).astype(np.float32)
    targets = np.int32([5, 6, 7])
    broken = np.where(np.arange(3)[:, None] == 1, np.float32(np.nan), logits)
    healthy = token_logprobs(jnp.asarray(logits), jnp.asarray(targets), 4)
    found = token_logprobs(jnp.asarray(broken), jnp.asarray(np.int32([5, -1, 7])), 4)
    for ours, expected in zip(jax.tree.leaves(found), jax.tree.leaves(healthy), strict=True):
        np.testing.assert_array_equal(np.delete(ours, 1, 0), np.delete(expected, 1, 0))

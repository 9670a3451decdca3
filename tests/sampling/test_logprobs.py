"""Log-probabilities of drawn and of prompt tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastgen_jax.sampling.logprobs import prompt_logprobs, token_logprobs, top_tokens


@pytest.mark.parametrize(("width", "k"), [(50, 4), (300, 1), (1000, 3), (1024, 8), (50, 50)])
def test_top_tokens_are_ordered_with_lower_ids_first(width, k):
    rng = np.random.default_rng(0)
    logits = rng.integers(-3, 4, (3, width)).astype(np.float32)  # many ties
    ids, values = top_tokens(jnp.asarray(logits), k)
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(logits, expected, 1))


@pytest.mark.parametrize("wanted", ["none", "some", "one", "all"])
def test_prompt_logprobs_are_those_of_each_token(wanted):
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

    found = jax.jit(lambda *a: prompt_logprobs(to_logits, *a, group=group, k=k))(
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

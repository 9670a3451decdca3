"""Rows sampled a group at a time draw what they draw together."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fastgen_jax.sampling import sample
from fastgen_jax.sampling.groups import usable_groups
from fastgen_jax.sampling_params import SamplingParams

# A greedy row, an edited one, a filtered one and one with penalties, none of a group like another.
PARAMS = (
    SamplingParams(temperature=0.0, logit_bias={7: 100.0}),
    SamplingParams(temperature=1.3, top_p=0.7),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8, frequency_penalty=1.5, allowed_token_ids=(3, 9, 40, 41)),
)


def test_groups_draw_the_same_tokens(bench, make_case, logits):
    cases = [make_case(params, seed=seed) for seed, params in enumerate(PARAMS)]
    together = bench.run(logits, cases)
    rows = jnp.arange(4, dtype=jnp.int32)
    positions = jnp.asarray([len(case.history) for case in cases], jnp.int32)
    grouped = jax.jit(sample, static_argnames="num_groups")(
        jnp.asarray(logits), bench.state, rows, positions, rows >= 0, num_groups=2
    )
    np.testing.assert_array_equal(np.asarray(grouped), together)
    assert len(set(together.tolist())) > 1


def test_rows_that_do_not_divide_stay_together():
    assert usable_groups(256, 8) == 8
    assert usable_groups(255, 8) == 1
    assert usable_groups(8, 8) == 1

"""The program of a chain: one for every length, in place, and none at all where C is 1."""

from __future__ import annotations

import jax
import pytest

from fastgen_jax.batching import StepShape
from fastgen_jax.models.weights.checkpoint import open_checkpoint
from fastgen_jax.runtime.abstract import AbstractStep, abstract_step
from fastgen_jax.runtime.cache import cache_spec
from fastgen_jax.runtime.step import StepSpec
from fastgen_jax.sampling import RowLimits
from tests.e2e.conftest import TINY_MODEL


def make_step(num_steps: int, *, num_blocks: int = 6, unroll_layers: bool = False) -> AbstractStep:
    with open_checkpoint(TINY_MODEL) as checkpoint:
        config = checkpoint.config
    cache = cache_spec(
        config,
        num_blocks=num_blocks,
        block_size=8,
        dtype="float32",
        unroll_layers=unroll_layers,
    )
    spec = StepSpec(
        shape=StepShape(4, 4),
        max_blocks_per_seq=4,
        max_logprobs=3,
        cache=cache,
        max_chained_steps=num_steps,
    )
    limits = RowLimits(
        max_num_seqs=4, max_model_len=32, vocab_size=config.vocab_size, max_logprobs=3
    )
    return abstract_step(config, spec, limits, dtype="float32")


@pytest.mark.parametrize("unroll_layers", [False, True])
def test_a_chain_updates_pages_in_place(unroll_layers: bool) -> None:
    """A pool of 4000 blocks takes no more temporary memory than one of 6."""
    found = {}
    for num_blocks in (6, 4000):
        step = make_step(4, num_blocks=num_blocks, unroll_layers=unroll_layers)
        pool = sum(leaf.size * leaf.dtype.itemsize for leaf in step.arguments[1])
        analysis = step.lower().compile().memory_analysis()
        assert analysis is not None
        assert analysis.alias_size_in_bytes >= pool, "pages aren't donated"
        found[num_blocks] = pool, analysis.temp_size_in_bytes
    (small, before), (large, after) = found.values()
    assert after - before < (large - small) / 100


def test_a_chain_of_one_is_no_loop() -> None:
    one, four = make_step(1, unroll_layers=True), make_step(4, unroll_layers=True)
    loops = [
        str(jax.make_jaxpr(step.function)(*step.arguments)).count("while[") for step in (one, four)
    ]
    assert loops[1] == loops[0] + 1


def test_every_length_is_the_same_program() -> None:
    """The length is data: the results have room for the longest chain, whatever runs."""
    one, four = make_step(1), make_step(4)
    shapes = [jax.eval_shape(step.function, *step.arguments)[2].shape for step in (one, four)]
    assert shapes[1][0] == 4 * shapes[0][0]
    assert repr(one.description) != repr(four.description)

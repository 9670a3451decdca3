"""The step with unrolled layers, as GPUs run it, equals the step that loops over them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastgen_jax import SamplingParams
from fastgen_jax.batching import StepResults, StepShape
from fastgen_jax.batching.inputs import ROW_FLAG_SAMPLES
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.decoder import Decoder
from fastgen_jax.models.dense import DenseWeights
from fastgen_jax.models.tensors import tensor_shapes
from fastgen_jax.models.weights.checkpoint import open_checkpoint
from fastgen_jax.runtime.abstract import AbstractStep, abstract_step
from fastgen_jax.runtime.cache import cache_spec
from fastgen_jax.runtime.step import SplitModel, StepSpec, build_step
from fastgen_jax.sampling import RowLimits, init_row_state, pack_row, write_row
from pallas_kernels import ReferenceConfig

pytestmark = pytest.mark.usefixtures("jax_strict")

TINY = Path(__file__).parents[1] / "references" / "tiny_llama"
PROMPT = [37, 235, 140, 72, 255]
# transformers sums the same float32 products in another order.
TOLERANCE = 1e-4


@pytest.mark.parametrize("unroll_layers", [True, False])
def test_a_prompt_and_its_next_token(unroll_layers: bool) -> None:
    """First token and log-probability as transformers gives them; keys land in the right block."""
    with open_checkpoint(TINY) as checkpoint:
        weights = {n: jnp.asarray(v) for n, v in checkpoint.tensors(np.dtype(np.float32))}
        config = checkpoint.config
    spec = StepSpec(
        shape=StepShape(8, 2),
        max_blocks_per_seq=4,
        max_logprobs=3,
        cache=cache_spec(
            config, num_blocks=6, block_size=8, dtype="float32", unroll_layers=unroll_layers
        ),
    )
    limits = RowLimits(
        max_num_seqs=2, max_model_len=32, vocab_size=config.vocab_size, max_logprobs=3
    )
    params = SamplingParams(temperature=0, logprobs=3)
    packed_row = pack_row(limits, token_ids=PROMPT, prompt_len=5, params=params, seed=0)
    rows = write_row(init_row_state(limits), jnp.int32(1), jnp.asarray(packed_row))
    packed = np.zeros(spec.inputs.size, np.int32)
    values = {"num_rows": 1, "device_row": 1, "query_len": 5, "kv_len": 5}
    for name, value in {**values, "flags": ROW_FLAG_SAMPLES, "block_tables": 3}.items():
        packed[spec.inputs.slices[name].start] = value
    split = SplitModel.of(Decoder(config, DenseWeights(weights)))
    step = jax.jit(build_step(split, spec))
    pages, rows, out = step(split.leaves, spec.cache.zeros(), rows, jnp.asarray(packed))
    results = StepResults(np.asarray(out), spec.results)

    reference = json.loads((TINY.parent / "tiny_llama_greedy.json").read_text())["prompts"][0]
    assert reference["prompt_token_ids"] == PROMPT
    token_id = reference["token_ids"][0]
    assert results.token_ids == [token_id, -1]
    assert int(rows.token_ids[1, 5]) == token_id
    expected = reference["first_token_logprobs"][token_id]
    assert float(results.field("logprob")[0]) == pytest.approx(expected, abs=TOLERANCE)
    k_pages = np.concatenate([np.asarray(p) for p in pages[::2]])  # [L * N, K, S, D]
    blocks = k_pages.reshape(config.num_layers, 6, *k_pages.shape[1:])
    assert (np.abs(blocks[:, 3, :, :5]).max(axis=(1, 3)) > 0).all()
    assert (blocks[:, 3, :, 5:] == 0).all()
    assert (blocks[:, [1, 2, 4, 5]] == 0).all()


def tiny_step(**changes: object) -> tuple[AbstractStep, ModelConfig]:
    with open_checkpoint(TINY) as checkpoint:
        config = checkpoint.config
    cache = cache_spec(config, num_blocks=6, block_size=8, dtype="float32", unroll_layers=True)
    spec = StepSpec(shape=StepShape(8, 2), max_blocks_per_seq=4, max_logprobs=3, cache=cache)
    limits = RowLimits(
        max_num_seqs=2, max_model_len=32, vocab_size=config.vocab_size, max_logprobs=3
    )
    return abstract_step(config, replace(spec, **changes), limits, dtype="bfloat16"), config


def test_an_abstract_step_names_its_weights() -> None:
    step, config = tiny_step()
    shapes = {
        name: leaf.shape for name, leaf in zip(step.weight_names, step.arguments[0], strict=True)
    }
    assert shapes == tensor_shapes(config)
    assert {str(leaf.dtype) for leaf in step.arguments[0]} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in step.arguments[1]} == {"float32"}


def test_an_abstract_step_donates_pages_and_rows() -> None:
    step, _ = tiny_step()
    donated = [step.argument_names[index] for index in step.donate_argnums]
    assert donated == ["pages", "row_state"]
    shapes = jax.eval_shape(step.function, *step.arguments)
    given = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), step.arguments[1:3])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes[:2]) == given


def test_the_attention_follows_the_spec() -> None:
    """Other tiles are another program: one that walks over more items, told apart by its key."""
    plain, _ = tiny_step()
    tiled, _ = tiny_step(attention=ReferenceConfig(chunk_queries=2))
    assert repr(plain.description) != repr(tiled.description)
    texts = {
        jax.jit(step.function).lower(*step.arguments).as_text().count("tensor<7x4xi32>") > 0
        for step in (plain, tiled)
    }
    assert texts == {False, True}  # 8 // 2 tiles + 2 rows + 1 entry for idle lanes

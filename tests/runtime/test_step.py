"""The step with unrolled layers, as GPUs run it, equals the step that loops over them."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fastgen_jax import SamplingParams
from fastgen_jax.batching import StepResults, StepShape
from fastgen_jax.batching.inputs import ROW_FLAG_SAMPLES
from fastgen_jax.models.decoder import Decoder
from fastgen_jax.models.weights.checkpoint import open_checkpoint
from fastgen_jax.runtime.cache import cache_spec
from fastgen_jax.runtime.step import SplitModel, StepSpec, build_step
from fastgen_jax.sampling import RowLimits, init_row_state, pack_row, write_row

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
    split = SplitModel.of(Decoder(config, weights))
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

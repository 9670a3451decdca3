"""Perplexity, the shuffled model, and what quantization may cost at most."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.quantization_quality import (
    VARIANTS,
    Quality,
    measure,
    perplexity,
    prompt_logprobs,
    read_texts,
    table,
    tokenized,
)
from benchmarks.shuffled_model import shuffle_features, write_shuffled
from fastgen_jax.models.decoder import Decoder, dense_logits
from fastgen_jax.models.dense import DenseWeights
from fastgen_jax.models.weights.checkpoint import open_checkpoint
from fastgen_jax.outputs import Logprob, RequestOutput

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "references" / "tiny_llama"
RESULTS = ROOT / "benchmarks" / "results" / "quantization_quality.json"


def test_even_odds_have_the_perplexity_of_their_number() -> None:
    assert perplexity([math.log(1 / 7)] * 5) == pytest.approx(7)
    assert perplexity([math.log(0.5), math.log(0.125)]) == pytest.approx(4)
    with pytest.raises(ValueError, match="no tokens"):
        perplexity([])


def test_the_prompts_own_tokens_are_taken() -> None:
    """Not the likeliest ones, which may come beside them."""

    def entry(logprob: float) -> Logprob:
        return Logprob(logprob=logprob, rank=1, decoded_token=None)

    output = RequestOutput(
        request_id="0",
        prompt=None,
        prompt_token_ids=(5, 6, 7),
        prompt_logprobs=(None, {9: entry(-0.1), 6: entry(-2.0)}, {7: entry(-3.0)}),
        outputs=(),
    )
    assert prompt_logprobs(output) == [-2.0, -3.0]


def test_the_first_variant_of_each_order_is_its_baseline() -> None:
    first = {}
    for variant in VARIANTS:
        first.setdefault(variant.order, variant)
    assert all((v.dtype, v.quantization) == ("float32", None) for v in first.values())


def test_the_table_names_everything() -> None:
    result = Quality(
        order="shuffled",
        dtype="bfloat16",
        quantization="int4",
        activation_quantization="int8",
        perplexity=12.345678,
        by_text={},
        relative_change=0.0123,
        weight_bytes=94_900_000,
    )
    line = table([result]).splitlines()[1]
    assert line.split() == ["int4", "shuffled", "bfloat16", "int8", "12.3457", "+1.230%", "95"]


def tiny_logits(directory: Path) -> np.ndarray:
    with open_checkpoint(directory) as checkpoint:
        arrays = {
            name: jnp.asarray(values) for name, values in checkpoint.tensors(np.dtype(np.float32))
        }
        model = Decoder(checkpoint.config, DenseWeights(arrays))
    return np.asarray(jax.jit(dense_logits)(model, jnp.array([256, 7, 99, 3, 3, 250])))


def test_a_shuffled_model_computes_the_same(tmp_path: Path) -> None:
    write_shuffled(TINY, tmp_path)
    with open_checkpoint(TINY) as a, open_checkpoint(tmp_path) as b:
        assert (a.config.hidden_size, a.config.num_layers) == (64, 2)
        for name in ("vocab_size", "num_kv_heads", "head_dim", "ropes", "tie_word_embeddings"):
            assert getattr(a.config, name) == getattr(b.config, name)
        tensors = dict(a.tensors(np.dtype(np.float32)))
        for name, values in b.tensors(np.dtype(np.float32)):
            assert sorted(values.reshape(-1)) == sorted(tensors[name].reshape(-1)), name
            is_same = np.array_equal(values, tensors[name])
            assert is_same == (np.ptp(values) == 0), name  # norms that are all ones stay
    np.testing.assert_allclose(tiny_logits(tmp_path), tiny_logits(TINY), atol=1e-4, rtol=1e-4)


def test_the_comparison_notices_one_order_that_is_left_out() -> None:
    with open_checkpoint(TINY) as checkpoint:
        model = checkpoint.config
        tensors = dict(checkpoint.tensors(np.dtype(np.float32)))
    shuffled = shuffle_features(model, tensors)
    shuffled["layers.1.down"] = tensors["layers.1.down"]

    def logits(arrays: dict[str, np.ndarray]) -> np.ndarray:
        weights = DenseWeights({name: jnp.asarray(values) for name, values in arrays.items()})
        return np.asarray(dense_logits(Decoder(model, weights), jnp.array([256, 7, 99])))

    assert np.abs(logits(shuffled) - logits(tensors)).max() > 1e-3


def test_the_texts_are_long_enough() -> None:
    words = {name: len(text.split()) for name, text in read_texts().items()}
    assert len(words) == 3
    assert all(count > 350 for count in words.values())


@pytest.mark.skipif(not RESULTS.exists(), reason="not measured yet")
def test_measured_changes_follow_from_measured_perplexities() -> None:
    variants = json.loads(RESULTS.read_text())["variants"]
    assert len(variants) == len(VARIANTS)
    baselines: dict[str, float] = {}
    for variant in variants:
        baseline = baselines.setdefault(variant["order"], variant["perplexity"])
        assert variant["activation_quantization"] in ("int8", "none")
        assert variant["relative_change"] == pytest.approx(variant["perplexity"] / baseline - 1)


@pytest.mark.slow
def test_quantization_costs_little(smollm2_gguf: Path) -> None:
    """Of the beginning of one text; the whole figures are the benchmark's."""
    text = read_texts()["bread"]
    prompts = {name: ids[:160] for name, ids in tokenized(smollm2_gguf, {"bread": text}).items()}

    def measured(dtype: str, quantization: str | None) -> tuple[float, int]:
        found, weight_bytes = measure(smollm2_gguf, prompts, dtype=dtype, quantization=quantization)
        return perplexity(found["bread"]), weight_bytes

    exact, wide = measured("float32", None)
    packed, narrow = measured("float32", "gguf")
    rounded, eight = measured("float32", "int8")
    assert packed == pytest.approx(exact, rel=1e-4)  # the same numbers, kept in fewer bits
    assert narrow < 0.19 * wide
    assert rounded == pytest.approx(exact, rel=0.01)
    assert rounded != exact
    assert eight < 0.26 * wide

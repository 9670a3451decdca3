"""Every family, each variant of it, equal to transformers through the paged, chunked engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastgen_jax import LLM, SamplingParams
from fastgen_jax.errors import UnsupportedModelError
from fastgen_jax.models.registry import family_of_hf
from pallas_kernels.native import native_obstacle

FAMILIES = Path(__file__).parents[1] / "references" / "families"
CASES = sorted(path.parent.name for path in FAMILIES.glob("*/greedy.json"))
# They differ from a neighbour in a field that unit tests of rope, layers or experts hold as well.
NEIGHBOURS = {
    "falcon_180b",
    "falcon_40b",
    "falcon_sequential",
    "gemma",
    "gemma3_linear",
    "gpt2_scaled",
    "gpt_neox_sequential",
    "llama_head_dim",
    "llama_rope_dynamic",
    "llama_rope_dynamic_below",
    "llama_rope_linear",
    "llama_rope_yarn_factors",
    "llama_rope_yarn_mscale",
    "llama_rope_yarn_no_truncate",
    "llama_tied",
    "mistral_nemo",
    "olmo2_bias",
    "opt_350m",
    "opt_galactica",
    "phi3_partial",
    "phi_qk_layernorm",
    "qwen2_moe_mlp_only",
    "qwen2_moe_norm",
    "qwen3_moe_norm",
    "qwen3_moe_window",
    "qwen3_window",
    "smollm3_window",
}
# transformers sums the same float32 products in another order.
LOGPROB_TOLERANCE = 1e-4

# What "auto" takes is the native kernels where they are built, and XLA elsewhere.
IMPLEMENTATIONS = [
    "auto",
    pytest.param(
        "xla",
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(native_obstacle() is not None, reason="is what auto takes"),
        ],
    ),
]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.slow) if name in NEIGHBOURS else name for name in CASES
    ]
)
def case(request: pytest.FixtureRequest) -> Path:
    return FAMILIES / request.param


@pytest.fixture
def llm(case: Path, implementation: str, compilation_cache: Path) -> Iterator[LLM]:
    with LLM(
        case,
        dtype="float32",
        implementation=implementation,
        step_shapes=((16, 4),),
        block_size=8,
        num_kv_blocks=80,
        max_model_len=121,  # the longest prompt and its answer; OPT has little more
        max_logprobs=96,
        compilation_cache_dir=str(compilation_cache),
        show_progress=False,
    ) as llm:
        yield llm


def test_greedy_tokens_and_first_logprobs_equal_transformers(llm: LLM, case: Path) -> None:
    prompts = json.loads((case / "greedy.json").read_text())["prompts"]
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=96)
    outputs = llm.generate([prompt["prompt_token_ids"] for prompt in prompts], params)
    for output, prompt in zip(outputs, prompts, strict=True):
        found = output.outputs[0]
        assert found.logprobs is not None
        first = np.array([found.logprobs[0][token].logprob for token in range(96)])
        np.testing.assert_allclose(
            first, prompt["first_token_logprobs"], atol=LOGPROB_TOLERANCE, rtol=0
        )
        count = num_comparable(case, len(prompt["prompt_token_ids"]))
        assert list(found.token_ids)[:count] == prompt["token_ids"][:count]


def test_scores_biased_by_distance_are_refused_by_name() -> None:
    config = json.loads((FAMILIES / "falcon_7b" / "config.json").read_text()) | {"alibi": True}
    with pytest.raises(UnsupportedModelError, match=r"alibi=True: .*ALiBi"):
        family_of_hf(config).config_from_hf(config, {})


def num_comparable(case: Path, prompt_len: int) -> int:
    """Tokens before transformers computes Phi-3's whole cache anew, which we don't: all for others.

    It does so once a text is longer than those of training, where other rotary factors begin.
    """
    config = json.loads((case / "config.json").read_text())
    is_long = (config.get("rope_parameters") or {}).get("rope_type") == "longrope"
    if config["model_type"] != "phi3" or not is_long:
        return 24
    before = config["original_max_position_embeddings"] - prompt_len
    return 24 if before < 0 else before + 1


def test_description_in_the_form_of_transformers_4_means_the_same(case: Path) -> None:
    generation = case / "generation_config.json"
    ends = json.loads(generation.read_text()) if generation.is_file() else {}
    new, old = (
        json.loads((case / name).read_text()) for name in ("config.json", "legacy_config.json")
    )
    family = family_of_hf(new)
    assert family.config_from_hf(old, ends) == family.config_from_hf(new, ends)

"""The model families this engine runs, by the names checkpoints give them."""

from __future__ import annotations

from fastgen_jax.errors import UnsupportedModelError
from fastgen_jax.models.families.falcon import falcon_family
from fastgen_jax.models.families.gemma import gemma2_family, gemma3_family, gemma_family
from fastgen_jax.models.families.gpt import gpt2_family, gpt_neox_family
from fastgen_jax.models.families.llama import llama_family, mistral_family, smollm3_family
from fastgen_jax.models.families.moe import (
    gpt_oss_family,
    mixtral_family,
    qwen2_moe_family,
    qwen3_moe_family,
)
from fastgen_jax.models.families.olmo import olmo2_family
from fastgen_jax.models.families.opt import opt_family
from fastgen_jax.models.families.phi import phi3_family, phi_family
from fastgen_jax.models.families.qwen import qwen2_family, qwen3_family
from fastgen_jax.models.families.qwen1 import qwen_family
from fastgen_jax.models.families.stablelm import stablelm_family
from fastgen_jax.models.weights.family import JsonObject, ModelFamily

# To add a family: a function returning its ModelFamily, and a place in this tuple.
FAMILIES: tuple[ModelFamily, ...] = (
    llama_family(),
    mistral_family(),
    smollm3_family(),
    qwen_family(),
    qwen2_family(),
    qwen3_family(),
    gemma_family(),
    gemma2_family(),
    gemma3_family(),
    olmo2_family(),
    stablelm_family(),
    phi_family(),
    phi3_family(),
    gpt2_family(),
    gpt_neox_family(),
    opt_family(),
    falcon_family(),
    mixtral_family(),
    qwen2_moe_family(),
    qwen3_moe_family(),
    gpt_oss_family(),
)


def family_of_hf(config: JsonObject) -> ModelFamily:
    """Return the family of a Hugging Face config.json; UnsupportedModelError if there is none."""
    names = config.get("architectures")
    if isinstance(names, list) and len(names) == 1:
        for family in FAMILIES:
            if family.architecture == names[0]:
                return family
    raise _unsupported("architectures", names, [family.architecture for family in FAMILIES])


def family_of_gguf(metadata: JsonObject) -> ModelFamily:
    """Return the family of GGUF metadata; UnsupportedModelError if there is none."""
    name = metadata.get("general.architecture")
    by_name = {f.gguf_architecture: f for f in FAMILIES if f.gguf_architecture is not None}
    if isinstance(name, str) and name in by_name:
        return by_name[name]
    raise _unsupported("general.architecture", name, list(by_name))


def _unsupported(field: str, value: object, supported: list[str]) -> UnsupportedModelError:
    return UnsupportedModelError(
        "this architecture isn't implemented",
        field=field,
        value=value,
        remedy=f"use a model of {', '.join(supported)}",
    )

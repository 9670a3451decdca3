"""Runs whole engines over meshes of 1 to 8 virtual CPU devices; prints their tokens as JSON.

A program of its own, because jax counts the devices when it starts:
``XLA_FLAGS=--xla_force_host_platform_device_count=8 python engines_on_eight_devices.py CACHE
MODEL:TENSOR,EXPERT ...``, where a MODEL is one of SHAPES or a file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fastgen_jax import LLM, SamplingParams
from fastgen_jax.models.registry import family_of_hf
from fastgen_jax.models.tensors import tensor_shapes

FAMILIES = Path(__file__).parents[1] / "references" / "families"
HEADS: Mapping[str, Any] = {"num_attention_heads": 8, "head_dim": 8, "hidden_size": 64}
# A reference's description, with as many heads as the largest mesh has devices.
SHAPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", HEADS | {"num_key_value_heads": 8, "intermediate_size": 64}),
    "qwen3_moe": (
        "qwen3_moe_norm",
        HEADS
        | {
            "num_key_value_heads": 4,
            "intermediate_size": 48,
            "moe_intermediate_size": 16,
            "num_local_experts": 8,
        },
    ),
    "mixtral": ("mixtral", HEADS | {"num_key_value_heads": 2, "intermediate_size": 48}),
    "gemma3": ("gemma3", HEADS | {"num_key_value_heads": 2, "intermediate_size": 64}),
}
PROMPT_LENGTHS = (5, 17, 40)


def write_checkpoint(directory: Path, case: str, changes: Mapping[str, Any]) -> None:
    """Random weights under the names of the family."""
    config = json.loads((FAMILIES / case / "config.json").read_text()) | changes
    family = family_of_hf(config)
    model = family.config_from_hf(config, {})
    shapes = tensor_shapes(model)
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for placement in family.hf_weights(model).placements:
        shape = placement.stored_shape(shapes[placement.name])
        # Smaller, so that no token is nearly certain.
        size = 0.08 if placement.name in ("embed", "head") else 0.3
        tensors[placement.stored_name] = rng.standard_normal(shape, np.float32) * np.float32(size)
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")


def tokens(model: Path, cache: str, tensor: int, expert: int) -> list[list[int]]:
    """Greedy and drawn continuations."""
    prompts = [[3 + i % 90 for i in range(length)] for length in PROMPT_LENGTHS]
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    drawn = SamplingParams(temperature=0.9, top_k=40, seed=7, max_tokens=12, ignore_eos=True)
    with LLM(
        model,
        dtype="float32",
        implementation="xla",
        step_shapes=((16, 4),),
        block_size=8,
        num_kv_blocks=80,
        max_model_len=64,
        compilation_cache_dir=cache,
        show_progress=False,
        tensor_parallel_size=tensor,
        expert_parallel_size=expert,
    ) as llm:
        devices = tensor * expert
        plan = str(llm.startup.memory_plan)
        assert (f"of each of {devices} devices" in plan) == (devices > 1)
        repeats = devices // llm.model_config.num_kv_heads
        assert (f"each kv head is on {repeats} devices" in plan) == (repeats > 1)
        outputs = llm.generate(prompts * 2, [greedy] * 3 + [drawn] * 3)
    return [list(output.outputs[0].token_ids) for output in outputs]


def main() -> None:
    """Run what the arguments name."""
    cache, *runs = sys.argv[1:]
    found: dict[str, list[list[int]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for run in runs:
            name, sizes = run.rsplit(":", 1)
            path = Path(scratch) / name if name in SHAPES else Path(name)
            if name in SHAPES and not path.exists():
                write_checkpoint(path, *SHAPES[name])
            tensor, expert = map(int, sizes.split(","))
            found[run] = tokens(path, cache, tensor, expert)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

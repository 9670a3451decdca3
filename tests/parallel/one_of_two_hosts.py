"""One of two processes, with two virtual CPU devices each, that share a model.

``XLA_FLAGS=--xla_force_host_platform_device_count=2 python one_of_two_hosts.py PORT INDEX MODEL
TOKENS [name=value ...]``. Host 0 prints what it generates as JSON; both print an error. With
"alone" for INDEX one process has all devices.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import fastgen_jax
from fastgen_jax import SamplingParams


def main() -> None:
    """Join, then lead or follow."""
    port, index, model, count, *changes = sys.argv[1:]
    settings: dict[str, Any] = {
        "dtype": "float32",
        "implementation": "xla",
        "step_shapes": ((16, 4),),
        "block_size": 8,
        "num_kv_blocks": 200,
        "max_model_len": 256,
        "tensor_parallel_size": 4,
        "host_timeout_seconds": 10,
        "compilation_cache_dir": "off",
        "show_progress": False,
    }
    settings |= {name: json.loads(value) for name, value in (c.split("=") for c in changes)}
    try:
        if index != "alone":
            fastgen_jax.join_hosts(f"127.0.0.1:{port}", num_hosts=2, index=int(index))
        if index == "1":
            fastgen_jax.follow(model, **settings)
            return
        with fastgen_jax.LLM(model, **settings) as llm:
            print("ready", flush=True)
            print(json.dumps(generated(llm, int(count))), flush=True)
    except fastgen_jax.FastGenError as error:
        cause = "" if error.__cause__ is None else f" [{error.__cause__}]"
        print(f"{type(error).__name__}: {error}{cause}", flush=True)
        os._exit(3)  # the devices may still wait for those of the other host


def generated(llm: fastgen_jax.LLM, count: int) -> list[list[int]]:
    """Greedy and drawn continuations."""
    greedy = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    drawn = SamplingParams(seed=3, max_tokens=count, ignore_eos=True)
    prompts = [[3 + i % 90 for i in range(length)] for length in (5, 17, 40)]
    outputs = llm.generate(prompts * 2, [greedy] * 3 + [drawn] * 3)
    return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    main()

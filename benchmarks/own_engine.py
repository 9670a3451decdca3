"""This project's engine behind the line protocol of ``benchmarks.peers.protocol``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tyro

from benchmarks.peers.protocol import Requests, serve, take_stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnEngine:
    """Starts the engine, then runs the workloads it is sent; prefix caching only if asked for."""

    model: str = "smollm2-135m-instruct"
    """A built-in name, a directory, a .gguf file or a Hub id."""
    dtype: str = "bfloat16"
    """"float32" or "bfloat16"."""
    max_model_len: int = 2048
    """Most tokens of a request."""
    max_num_seqs: int = 32
    """Most requests running at once."""
    token_budget: int | None = None
    """Most tokens of one step; None is the engine's default."""
    quantization: str | None = None
    """"int8", "int4", or "gguf": weights packed as in the file; None keeps them in dtype."""
    num_kv_blocks: int | None = None
    """Blocks of the cache; None is the engine's default."""
    prefix_caching: bool = False
    """Share cached blocks between prompts with equal beginnings."""

    def main(self) -> None:
        """Serve until standard input ends."""
        messages = take_stdout()
        start = time.perf_counter()
        import fastgen_jax
        from fastgen_jax.llm import LLM
        from fastgen_jax.sampling_params import SamplingParams
        from pallas_kernels.native import native_obstacle

        settings: Mapping[str, Any] = {
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "token_budget": self.token_budget,
            "num_kv_blocks": self.num_kv_blocks,
            "enable_prefix_caching": self.prefix_caching,
            "show_progress": False,
        }
        if self.quantization is not None:
            settings = {**settings, "quantization": self.quantization}
        with LLM(self.model, **settings) as llm:

            def run(requests: Requests) -> dict[str, Any]:
                prompts = [request["prompt_token_ids"] for request in requests]
                params = [
                    SamplingParams(
                        temperature=0.0, max_tokens=request["max_tokens"], ignore_eos=True
                    )
                    for request in requests
                ]
                before = llm.metrics
                begin = time.perf_counter()
                outputs = llm.generate(prompts, params)
                seconds = time.perf_counter() - begin
                after = llm.metrics
                steps = Counter(after.steps_by_shape) - Counter(before.steps_by_shape)
                return {
                    "seconds": seconds,
                    "output_token_ids": [list(out.outputs[0].token_ids) for out in outputs],
                    "steps_by_shape": [
                        {"shape": list(shape), "count": count}
                        for shape, count in sorted(steps.items())
                    ],
                    "num_padding_tokens": after.num_padding_tokens - before.num_padding_tokens,
                }

            ready = {
                "engine": "fastgen_jax",
                "version": fastgen_jax.__version__,
                "native": native_obstacle() is None,
                "load_seconds": llm.startup.load_seconds,
                "compile_seconds": llm.compile_report.wall_seconds,
                "num_cached_programs": llm.compile_report.num_cached,
            }
            serve(messages, {**ready, "engine_seconds": time.perf_counter() - start}, run)


if __name__ == "__main__":
    tyro.cli(OwnEngine, description=__doc__).main()

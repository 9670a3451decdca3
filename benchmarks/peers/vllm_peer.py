"""vLLM's offline engine behind the line protocol; run by an interpreter that has vLLM."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any


def main() -> None:
    """Start the engine, then serve."""
    from protocol import Requests, serve, take_stdout

    arguments = parse_arguments()
    messages = take_stdout()
    # vLLM keeps cores free for its other processes; on a small machine that is half of them.
    os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = str(arguments.reserved_cpus)
    start = time.perf_counter()
    import vllm  # pyright: ignore[reportMissingImports]

    llm = vllm.LLM(
        model=arguments.model,
        dtype=arguments.dtype,
        max_model_len=arguments.max_model_len,
        max_num_batched_tokens=arguments.token_budget,
        max_num_seqs=arguments.max_num_seqs,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=arguments.kv_cache_mib << 20,
        enforce_eager=arguments.eager,
        skip_tokenizer_init=True,
    )

    def run(requests: Requests) -> dict[str, Any]:
        prompts = [{"prompt_token_ids": request["prompt_token_ids"]} for request in requests]
        params = [
            vllm.SamplingParams(
                temperature=0.0,
                max_tokens=request["max_tokens"],
                ignore_eos=True,
                detokenize=False,
            )
            for request in requests
        ]
        begin = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return {
            "seconds": time.perf_counter() - begin,
            "output_token_ids": [list(output.outputs[0].token_ids) for output in outputs],
        }

    ready = {"engine": "vllm", "version": vllm.__version__, "eager": arguments.eager}
    serve(messages, {**ready, "engine_seconds": time.perf_counter() - start}, run)


def parse_arguments() -> argparse.Namespace:
    """The engine's settings from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--max-num-seqs", type=int, default=32)
    parser.add_argument("--token-budget", type=int, default=512)
    parser.add_argument("--kv-cache-mib", type=int, default=2048)
    parser.add_argument("--reserved-cpus", type=int, default=0)
    parser.add_argument("--eager", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":  # vLLM's own processes import this file again
    main()

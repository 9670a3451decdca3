"""One token in a fresh process, as soon as it can be had; ``start_up`` runs and times it.

Nothing is imported that a user's shortest script wouldn't import. The line written holds the
seconds of this process's own clock after each stage, counted from its first statement.
"""

from __future__ import annotations

import time

START = time.perf_counter()


def main() -> None:
    """Build the engine, draw one token, write one JSON line."""
    import argparse
    import json

    parser = argparse.ArgumentParser(description="One token in a fresh process.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--in-background", action="store_true")
    arguments = parser.parse_args()

    from fastgen_jax import LLM, SamplingParams

    stages = {"imported": time.perf_counter() - START}
    with LLM(
        arguments.model,
        dtype=arguments.dtype,
        compile_in_background=arguments.in_background,
        show_progress=False,
    ) as llm:
        stages["ready"] = time.perf_counter() - START
        prompt = list(range(100, 116))
        deltas = llm.stream(prompt, SamplingParams(temperature=0.0, max_tokens=1))
        token_ids = [token for delta in deltas for token in delta.token_ids]
        stages["first_token"] = time.perf_counter() - START
        print(json.dumps({"stages": stages, "token_ids": token_ids}), flush=True)


if __name__ == "__main__":
    main()

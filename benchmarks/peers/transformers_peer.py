"""transformers' generate on left-padded batches behind the line protocol.

It has no continuous batching: a batch runs until its longest output, and its prompts are padded to
the longest. Outputs are cut to what each request asked for.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any


def main() -> None:
    """Load the model, then serve."""
    from protocol import Requests, serve, take_stdout

    arguments = parse_arguments()
    messages = take_stdout()
    start = time.perf_counter()
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=getattr(torch, arguments.dtype)
    ).eval()

    def generate(batch: Requests) -> list[list[int]]:
        width = max(len(request["prompt_token_ids"]) for request in batch)
        pads = [width - len(request["prompt_token_ids"]) for request in batch]
        rows = zip(pads, batch, strict=True)
        ids = torch.tensor([[0] * pad + request["prompt_token_ids"] for pad, request in rows])
        mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
        num_new = max(request["max_tokens"] for request in batch)
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=num_new,
                min_new_tokens=num_new,
                do_sample=False,
                pad_token_id=0,
            )
        rows = zip(out[:, width:].tolist(), batch, strict=True)
        return [row[: request["max_tokens"]] for row, request in rows]

    def run(requests: Requests) -> dict[str, Any]:
        begin = time.perf_counter()
        outputs: list[list[int]] = []
        for first in range(0, len(requests), arguments.batch_size):
            outputs += generate(requests[first : first + arguments.batch_size])
        return {"seconds": time.perf_counter() - begin, "output_token_ids": outputs}

    ready = {"engine": "transformers", "version": transformers.__version__}
    serve(messages, {**ready, "engine_seconds": time.perf_counter() - start}, run)


def parse_arguments() -> argparse.Namespace:
    """The model and how to batch, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch-size", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()

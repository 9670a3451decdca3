"""transformers' log-probabilities of given tokens: JSON in on standard input, JSON out.

In: ``{"model": directory, "dtype": name, "prompts": {name: token ids}}``. Out: ``{"version": …,
"logprobs": {name: log-probability of each token but the first}}``.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Read, compute, write."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    asked = json.load(sys.stdin)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        asked["model"], dtype=getattr(torch, asked["dtype"])
    ).eval()
    found: dict[str, list[float]] = {}
    with torch.inference_mode():
        for name, prompt in asked["prompts"].items():
            ids = torch.tensor([prompt])
            logits = model(ids).logits[0, :-1].double()
            chosen = torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])
            found[name] = chosen[:, 0].tolist()
    json.dump({"version": transformers.__version__, "logprobs": found}, sys.stdout)


if __name__ == "__main__":
    main()

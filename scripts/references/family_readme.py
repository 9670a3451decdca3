"""The list of the families' reference outputs."""

from __future__ import annotations

import json
from pathlib import Path

README = """# Reference outputs of every model family

Made by transformers from tiny random checkpoints in float32:

    python scripts/references/make_family_references.py --out tests/references/families

needs torch, transformers and safetensors; `--check` computes the committed ones again and
compares, and `--search` finds the seed of a new case. Cases are data in
`scripts/references/family_cases_*.py`.

Each directory holds

- `config.json` as transformers 5 writes it, and `legacy_config.json`: the same model described as
  transformers 4 did (`rope_theta`, `rope_scaling`, `rotary_pct`, …), checked to mean the same;
- `model.safetensors`; a tied head is not in it; `generation_config.json` where it matters;
- `greedy.json`: for prompts of 5, 17, 40 and 97 tokens all log-probabilities of the first new
  token, 24 greedy tokens (end ids ignored) and the gap between the two largest logits at each step.
  `stopped_token_ids` is what the ids of generation_config.json leave of them. Where results depend
  on the cache or on when RoPE frequencies change, `token_ids` is what `generate` gives and
  `without_cache`, `frozen_at_prompt`, `frozen_at_total` are named beside it; `note` explains.

`rounding` is how far float64 moves the first log-probabilities: what float32 leaves open.
`felt` in greedy.json says how far the first log-probabilities move when one field of the config is
changed: all are above 0.001, and so is the effect of switching any kind of tensor off.

Not here: Qwen (1), which transformers does not contain, and partial rotary in Llama, whose
transformers classes ignore `partial_rotary_factor`.

| case | model_type | covers | smallest margin | least felt change | weights, kB |
|---|---|---|---|---|---|
{rows}
"""


def readme(out: Path) -> str:
    """Return the list of cases in Markdown, a row for each directory."""
    rows = "\n".join(row(path) for path in sorted(out.glob("*/greedy.json")))
    return README.format(rows=rows)


def row(path: Path) -> str:
    """Return a case's row of the list."""
    content = json.loads(path.read_text(encoding="utf-8"))
    size = (path.parent / "model.safetensors").stat().st_size
    felt = min(content["felt"].values(), default=0.0)
    cells = (content["case"], content["model_type"], content["covers"])
    return f"| {' | '.join(cells)} | {content['smallest_margin']} | {felt} | {size // 1000} |"

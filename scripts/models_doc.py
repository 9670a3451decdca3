"""docs/models.md, made of the registry and of the reference cases, so that it says what is true.

    python scripts/models_doc.py            print it
    python scripts/models_doc.py --write    write it

A test holds the committed document to it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fastgen_jax.models.registry import FAMILIES
from fastgen_jax.models.weights.builtin import BUILTIN_MODELS
from fastgen_jax.models.weights.family import ModelFamily
from fastgen_jax.models.weights.gguf import ENCODINGS

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "models.md"
CASES = ROOT / "tests" / "references" / "families"

HEAD = """# Models

Made by `scripts/models_doc.py` from the registry and the reference cases; don't edit it by hand.
[How to add a family](adding_a_model.md).

Every case below is a tiny random checkpoint, written by transformers. The engine reads it and runs
prompts of 5, 17, 40 and 97 tokens through paged cache and chunks (a budget of 16 tokens, pages of
8): 24 greedy tokens are the same and the first log-probabilities within 1e-4, on the native kernels
and on XLA. A description that asks for mathematics that isn't implemented is refused with the name
of the field.

Built-in names: {builtin}. They are real models from the
package index, checked by SHA-256, whose greedy tokens, tokenizer and perplexity are held equal to
transformers'.

GGUF: tensors in {encodings}.
A GGUF file of a Mistral or a Mixtral calls itself `llama`.

| Models | Architecture | GGUF | Cases | Limits |
|---|---|---|---:|---|
"""

CASES_HEAD = """
## What is held equal to transformers

| Case | What it has |
|---|---|
"""


def document() -> str:
    """Return the whole document."""
    by_architecture = cases()
    builtin = ", ".join(f"`{model.name}`" for model in BUILTIN_MODELS)
    encodings = ", ".join(encoding.name for encoding in ENCODINGS.values())
    text = HEAD.format(builtin=builtin, encodings=encodings)
    for family in FAMILIES:
        text += row(family, by_architecture.get(family.architecture, {}))
    text += CASES_HEAD
    for family in FAMILIES:
        for name, covers in by_architecture.get(family.architecture, {}).items():
            text += f"| `{name}` | {covers} |\n"
    return text


def cases() -> dict[str, dict[str, str]]:
    """Return for each architecture its cases by name, and what each has."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(CASES.glob("*/greedy.json")):
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        (architecture,) = config["architectures"]
        covers = json.loads(path.read_text(encoding="utf-8"))["covers"]
        found.setdefault(architecture, {})[path.parent.name] = covers
    return found


def row(family: ModelFamily, covers: dict[str, str]) -> str:
    """Return the family's line."""
    gguf = f"`{family.gguf_architecture}`" if family.gguf_architecture else ""
    cells = [family.title, f"`{family.architecture}`", gguf, str(len(covers) or "")]
    return "| " + " | ".join([*cells, "; ".join(family.limits)]) + " |\n"


def main() -> None:
    """Print or write the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help="write docs/models.md")
    if parser.parse_args().write:
        DOCUMENT.write_text(document(), encoding="utf-8")
    else:
        print(document(), end="")


if __name__ == "__main__":
    main()

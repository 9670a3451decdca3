"""Writes what Hugging Face transformers makes of the tokenizer in a SmolLM2 GGUF file.

Run it where transformers and gguf are installed; the test suite needs neither:

    python make_tokenizer_references.py --gguf SmolLM2.gguf --out smollm2_tokenizer.json

transformers (5.23 at least) has no splitting rule for ``tokenizer.ggml.pre`` = "smollm" and falls
back to GPT-2's, which keeps runs of digits together. SmolLM2's own tokenizer.json splits every
digit off first, so this script puts that pre-tokenizer in. ``gpt2_rule_differs`` in the output
marks the texts where the two rules disagree.
"""

# ruff: noqa: RUF001 - the texts are unusual on purpose

from __future__ import annotations

import argparse
import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

SPACES = "\u00a0\u2003\u3000\u200b"
TEXTS = (
    "",
    " ",
    "  ",
    "a",
    "Hello, world!",
    " leading space",
    "trailing space ",
    "two  spaces   three    four",
    "\n",
    "\n\n\n",
    "line one\nline two\r\nline three\r",
    "\ttab\t\ttabs\n\t indented",
    "        eight spaces",
    "   \n   \n  x",
    "The quick brown fox jumps over the lazy dog.",
    "I'm you're he'll we've they'd it's don't",
    "I'M YOU'RE HE'LL WE'VE THEY'D IT'S DON'T",
    "’curly’ “quotes” — dashes – and … dots",
    "0",
    "42",
    "1234567890",
    "3.14159 1e-9 0xDEADBEEF 1_000_000",
    "2024-01-31T23:59:59.999Z",
    "v1.2.3-rc4+build567",
    "１２３ fullwidth, ٣٤٥ Arabic, ४५६ Devanagari, Ⅷ ½ ²",
    "a1b2c3 x86_64 utf8 3D",
    "+1 (555) 010-9999",
    "$1,234.56 €99 50%",
    "def f(x: int) -> int:\n    return x**2 + 1  # square\n",
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }",
    'print(f"{name!r:>10}\\n")',
    "SELECT * FROM t WHERE id = 7 AND name LIKE '%x%';",
    '<div class="a b">text &amp; more</div>',
    '{"key": [1, 2.5, null, true], "nested": {"a": "b"}}',
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case",
    "https://example.com/a/b?c=d&e=f#g",
    "user.name+tag@example.org",
    "\\frac{1}{2} \\sum_{i=0}^{n} x_i^2",
    "!!!???...---***###",
    "(((nested [brackets] {here})))",
    "Ça va très bien, l'été à la plage.",
    "Größe, Straße, Übermut",
    "Привет, как дела?",
    "Καλημέρα κόσμε",
    "你好，世界！这是一个测试。",
    "こんにちは世界、カタカナとひらがな",
    "안녕하세요 세계",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "😀😃 🎉 emoji",
    "👨‍👩‍👧‍👦 family, 👍🏽 skin, 🇫🇷 flag",
    "e\u0301 combining vs \u00e9 composed",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 math 𝟘𝟙𝟚",
    f"odd{SPACES}spaces",
    "\u0000 \u0007 \u001b[31m control",
    "\ufeffbyte order mark",
    "replacement \ufffd character",
    "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b <|endoftext|> c",
    "<|im_start|><|im_end|><|im_end|>",
    "<|im_start> almost |im_end|> special <|im_",
    "<repo_name>x<file_sep>y<jupyter_code>1+1<empty_output>",
    "word " * 40,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
)
CHATS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is 2 + 2?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <b>you</b>"}],
    [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two\n"},
        {"role": "user", "content": " three "},
    ],
)


def smollm_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer of SmolLM2's published tokenizer.json."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )


def references(gguf: Path) -> dict[str, object]:
    """The reference document: versions, source file, and one entry for each text and chat."""
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    converted = str(tokenizer.backend_tokenizer.pre_tokenizer)
    by_gpt2_rule = [tokenizer.encode(text) for text in TEXTS]
    tokenizer.backend_tokenizer.pre_tokenizer = smollm_pre_tokenizer()
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("transformers", "tokenizers", "gguf")},
        },
        "source": {"file": gguf.name, "sha256": _sha256(gguf)},
        "pre_tokenizer": {
            "of_transformers": converted,
            "used": str(tokenizer.backend_tokenizer.pre_tokenizer),
        },
        "cases": [
            _case(tokenizer, text, other) for text, other in zip(TEXTS, by_gpt2_rule, strict=True)
        ],
        "chats": [_chat(tokenizer, messages) for messages in CHATS],
    }


def _case(tokenizer: Any, text: str, by_gpt2_rule: list[int]) -> dict[str, object]:
    ids = tokenizer.encode(text)
    return {
        "text": text,
        "ids": ids,
        "decoded": _decode(tokenizer, ids, skip=True),
        "decoded_with_special": _decode(tokenizer, ids, skip=False),
        "gpt2_rule_differs": ids != by_gpt2_rule,
    }


def _decode(tokenizer: Any, ids: list[int], *, skip: bool) -> str:
    return tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


def _chat(tokenizer: Any, messages: list[dict[str, str]]) -> dict[str, object]:
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return {
        "messages": messages,
        "prompt": prompt,
        "ids": tokenizer.encode(prompt, add_special_tokens=False),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Reads --gguf, writes --out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gguf", type=Path, required=True, help="a SmolLM2 GGUF file")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    document = json.dumps(references(arguments.gguf), indent=1, ensure_ascii=True)
    arguments.out.write_text(document + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

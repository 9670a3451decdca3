"""Small vocabularies for the tests of text handling, and the real one's metadata."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import BinaryIO

import pytest
import sentencepiece
import tokenizers

CORPUS = (
    "the quick brown fox jumps over the lazy dog",
    "hello world, this is a small text about tokens",
    "Größe und Übermut, Straße und Käse",
    "def add(first, second): return first + second",
    "a model reads tokens and writes tokens",
)
LLAMA3_SPECIAL = ("<|begin|>", "<|end|>", "<|turn|>")


@pytest.fixture(scope="session")
def sentencepiece_model() -> bytes:
    """A tiny Llama-like model: BPE with byte fallback, a space prefix, no normalization."""
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4),
        model_writer=writer,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<user>"],
        minloglevel=3,
        num_threads=1,
    )
    return writer.getvalue()


@pytest.fixture(scope="session")
def byte_level_backend() -> str:
    """A tiny byte-level BPE as the text of a tokenizer.json; its first ids are special tokens."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(LLAMA3_SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend.to_str()


@pytest.fixture(scope="session")
def smollm2_fields(smollm2_gguf: Path) -> dict[str, object]:
    """The metadata of the real model's file, as the weight reader hands it over."""
    with smollm2_gguf.open("rb") as file:
        _magic, _version, _tensors, count = struct.unpack("<4sIQQ", file.read(24))
        return {_text(file): _value(file, _number(file, "<I")) for _ in range(count)}


def _value(file: BinaryIO, kind: int) -> object:
    scalars = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
    if kind == 8:
        return _text(file)
    if kind == 9:
        item, count = _number(file, "<I"), _number(file, "<Q")
        return [_value(file, item) for _ in range(count)]
    return _number(file, "<" + scalars[kind])


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "<Q")).decode("utf-8", errors="replace")


def _number(file: BinaryIO, layout: str) -> int:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]

"""Text to token ids and back: the interface, and the loader for a checkpoint directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from fastgen_jax.errors import TokenizerError
from fastgen_jax.text.huggingface_tokenizer import HuggingFaceTokenizer
from fastgen_jax.text.sentencepiece_tokenizer import SentencePieceTokenizer

__all__ = ["HuggingFaceTokenizer", "SentencePieceTokenizer", "Tokenizer", "load_tokenizer"]


@runtime_checkable
class Tokenizer(Protocol):
    """What the engine needs to know of a tokenizer; ids lie in ``range(vocab_size)``."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; the model's embedding may have more rows (padding)."""
        ...

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a sequence, or None where the model has none."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends generation, the main one first."""
        ...

    @property
    def bos_token(self) -> str | None:
        """The string of ``bos_token_id``, which chat templates write out."""
        ...

    @property
    def eos_token(self) -> str | None:
        """The string of the tokenizer's own end token, which chat templates write out."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The jinja source that turns messages into a prompt, or None where there is none."""
        ...

    @property
    def special_token_ids(self) -> frozenset[int]:
        """The ids that ``decode`` leaves out with ``skip_special_tokens``."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of ``text``; special tokens written in the text become their own ids.

        ``add_special_tokens`` adds what the model expects around a bare prompt (a bos token, say);
        pass False for a rendered chat template, which has written them already.
        """
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``token_ids``; bytes that are no UTF-8 read as U+FFFD, unknown ids as ""."""
        ...

    def id_to_token(self, token_id: int) -> str | None:
        """The raw vocabulary piece of one id, or None for an id outside the vocabulary."""
        ...


def load_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint directory, or None where it has no tokenizer files at all.

    ``tokenizer.json`` is preferred to ``tokenizer.model``. Raises TokenizerError for a corrupt
    file, and for a directory that describes a tokenizer but lacks a vocabulary we can read.
    """
    if (directory / "tokenizer.json").is_file():
        return HuggingFaceTokenizer.from_directory(directory)
    if (directory / "tokenizer.model").is_file():
        return SentencePieceTokenizer.from_directory(directory)
    leftovers = ("tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt", "tekken.json")
    found = [name for name in leftovers if (directory / name).is_file()]
    if found:
        raise TokenizerError(
            f"has {', '.join(found)} but neither tokenizer.json nor tokenizer.model",
            field="model",
            value=str(directory),
            remedy="complete the download, or save the tokenizer as tokenizer.json",
        )
    return None

"""A tokenizer of the Hugging Face ``tokenizers`` library, with its checkpoint's settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from fastgen_jax.errors import TokenizerError
from fastgen_jax.text.tokenizer_settings import (
    AddedToken,
    TokenizerSettings,
    read_tokenizer_settings,
)


class HuggingFaceTokenizer:
    """Encodes and decodes through a ``tokenizers.Tokenizer``; safe to use from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
        """Takes ``backend`` over: truncation and padding go off, the settings' tokens go in.

        Raises TokenizerError where the bos or eos token isn't in the vocabulary.
        """
        # A tokenizer.json may carry its training run's truncation, which would cut long prompts.
        backend.no_truncation()
        backend.no_padding()
        _mark_added_tokens(backend, settings.added_tokens)
        self._backend = backend
        self._add_bos = settings.add_bos
        self._add_eos = settings.add_eos
        self.chat_template: str | None = settings.chat_template
        self.bos_token: str | None = settings.bos_token
        self.eos_token: str | None = settings.eos_token
        self.bos_token_id: int | None = self._required_id("bos_token", settings.bos_token)
        self._own_eos_id = self._required_id("eos_token", settings.eos_token)
        own_eos = () if self._own_eos_id is None else (self._own_eos_id,)
        self.eos_token_ids: tuple[int, ...] = tuple(
            dict.fromkeys((*settings.eos_token_ids, *own_eos))
        )
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        self.special_token_ids: frozenset[int] = frozenset(
            token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        )

    @classmethod
    def from_directory(cls, directory: Path) -> HuggingFaceTokenizer:
        """The tokenizer of ``directory``/tokenizer.json; TokenizerError where it can't be read."""
        path = directory / "tokenizer.json"
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises the bare Exception class
            raise TokenizerError(
                f"can't be read ({error})",
                field="tokenizer.json",
                value=str(path),
                remedy="download the file again",
            ) from error
        return cls(backend, read_tokenizer_settings(directory))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of ``text``; see ``Tokenizer.encode``.

        An explicit add_bos_token of the settings replaces the post-processor of tokenizer.json, as
        in Hugging Face's Llama tokenizer.
        """
        post_process = add_special_tokens and self._add_bos is None
        ids = self._backend.encode(text, add_special_tokens=post_process).ids
        if not add_special_tokens:
            return ids
        if self._add_bos and self.bos_token_id is not None:
            ids.insert(0, self.bos_token_id)
        if self._add_eos and self._own_eos_id is not None:
            ids.append(self._own_eos_id)
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``token_ids``; see ``Tokenizer.decode``. Spaces are never cleaned up."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def id_to_token(self, token_id: int) -> str | None:
        """The raw vocabulary piece of one id, or None for an id outside the vocabulary."""
        return self._backend.id_to_token(token_id) if token_id >= 0 else None

    def _required_id(self, field: str, token: str | None) -> int | None:
        if token is None:
            return None
        token_id = self._backend.token_to_id(token)
        if token_id is None:
            raise TokenizerError(
                "is not in the vocabulary",
                field=field,
                value=token,
                remedy="use the tokenizer files that belong together",
            )
        return token_id


def _mark_added_tokens(backend: tokenizers.Tokenizer, tokens: Sequence[AddedToken]) -> None:
    """Makes the vocabulary's tokens named by the settings match whole, with their special flag.

    Tokens the vocabulary lacks are left out: adding them would give out ids the model has no
    embedding for.
    """
    described = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = [
        token
        for token in tokens
        if token.content not in described and backend.token_to_id(token.content) is not None
    ]
    wrapped = [
        tokenizers.AddedToken(token.content, normalized=False, special=token.special)
        for token in missing
    ]
    backend.add_special_tokens([token for token in wrapped if token.special])
    backend.add_tokens([token for token in wrapped if not token.special])

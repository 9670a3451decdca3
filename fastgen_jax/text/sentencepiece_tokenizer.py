"""A tokenizer of the sentencepiece library, with the special tokens its model file can't hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from fastgen_jax.errors import TokenizerError
from fastgen_jax.text.sentencepiece_model import without_dummy_prefix
from fastgen_jax.text.tokenizer_settings import (
    AddedToken,
    TokenizerSettings,
    read_tokenizer_settings,
)

_SPACE = "\u2581"


class SentencePieceTokenizer:
    """Encodes through a sentencepiece model; special tokens in the text are matched whole."""

    def __init__(self, model: bytes, settings: TokenizerSettings) -> None:
        """Takes a serialized sentencepiece ModelProto.

        Without settings, the model's own bos and eos hold, bos is added and eos is not (the
        defaults of Hugging Face's Llama tokenizer). Raises TokenizerError for a corrupt model and
        for settings that name a token neither the model nor the settings give an id.
        """
        self._processor = _load(model)
        self._has_dummy_prefix: bool = self._processor.normalize("a").startswith(_SPACE)
        # sentencepiece can't leave its prefix off for one call, hence a second processor.
        bare = self._has_dummy_prefix and not settings.prefix_after_special
        self._later_processor = _load(without_dummy_prefix(model)) if bare else self._processor

        self._pieces: dict[int, str] = dict(enumerate(_all_pieces(self._processor)))
        self._added = _added_ids(self._processor, settings.added_tokens)
        self._pieces.update({token_id: content for content, token_id in self._added.items()})
        self.vocab_size: int = max(self._pieces, default=-1) + 1
        self.special_token_ids: frozenset[int] = _special_ids(
            self._processor, self._added, settings.added_tokens
        )

        self.bos_token_id: int | None = self._role_id("bos", settings.bos_token)
        self._own_eos_id = self._role_id("eos", settings.eos_token)
        self.bos_token: str | None = self._role_token(self.bos_token_id)
        self.eos_token: str | None = self._role_token(self._own_eos_id)
        own_eos = () if self._own_eos_id is None else (self._own_eos_id,)
        self.eos_token_ids: tuple[int, ...] = tuple(
            dict.fromkeys((*settings.eos_token_ids, *own_eos))
        )
        self.chat_template: str | None = settings.chat_template
        self._add_bos = settings.add_bos is not False
        self._add_eos = settings.add_eos is True

        matched = {self._pieces[token_id]: token_id for token_id in self.special_token_ids}
        self._matched_whole: dict[str, int] = matched | self._added
        self._matcher = _longest_first(self._matched_whole)
        self._bytes = self._piece_bytes()

    @classmethod
    def from_directory(cls, directory: Path) -> SentencePieceTokenizer:
        """The tokenizer of ``directory``/tokenizer.model; TokenizerError if it can't be read."""
        model = (directory / "tokenizer.model").read_bytes()
        return cls(model, read_tokenizer_settings(directory))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of ``text``; see ``Tokenizer.encode``.

        The text between special tokens is encoded piece by piece, so the model's space prefix
        comes after each of them, unless the settings say otherwise (``prefix_after_special``).
        """
        ids: list[int] = []
        if add_special_tokens and self._add_bos and self.bos_token_id is not None:
            ids.append(self.bos_token_id)
        for start, fragment in self._fragments(text):
            if fragment in self._matched_whole:
                ids.append(self._matched_whole[fragment])
            else:
                processor = self._processor if start == 0 else self._later_processor
                ids.extend(processor.encode(fragment))
        if add_special_tokens and self._add_eos and self._own_eos_id is not None:
            ids.append(self._own_eos_id)
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``token_ids``; see ``Tokenizer.decode``.

        The one space that the model's prefix put at the start of the text is taken off again.
        """
        skipped = self.special_token_ids if skip_special_tokens else frozenset()
        shown = [token_id for token_id in token_ids if token_id not in skipped]
        raw = b"".join(self._bytes.get(token_id, b"") for token_id in shown)
        text = raw.decode("utf-8", errors="replace")
        return text[1:] if self._has_dummy_prefix and text.startswith(" ") else text

    def id_to_token(self, token_id: int) -> str | None:
        """The raw vocabulary piece of one id, or None for an id outside the vocabulary."""
        return self._pieces.get(token_id)

    def _fragments(self, text: str) -> Iterator[tuple[int, str]]:
        """The special tokens in ``text`` and the stretches between them, each with its start."""
        start = 0
        for match in self._matcher.finditer(text) if self._matcher else ():
            if match.start() > start:
                yield start, text[start : match.start()]
            yield match.start(), match.group()
            start = match.end()
        if start < len(text):
            yield start, text[start:]

    def _role_id(self, role: str, token: str | None) -> int | None:
        """The id of the bos or eos token: the settings' string, else the model's own."""
        if token is None:
            token_id = self._processor.bos_id() if role == "bos" else self._processor.eos_id()
            return token_id if token_id >= 0 else None
        if token in self._added:
            return self._added[token]
        token_id = self._processor.piece_to_id(token)
        if self._pieces.get(token_id) != token:
            raise TokenizerError(
                "is not in the vocabulary",
                field=f"{role}_token",
                value=token,
                remedy="use the tokenizer files that belong together",
            )
        return token_id

    def _role_token(self, token_id: int | None) -> str | None:
        return None if token_id is None else self._pieces[token_id]

    def _piece_bytes(self) -> dict[int, bytes]:
        """What each id adds to the text, in UTF-8."""
        processor = self._processor
        literal = self.special_token_ids | frozenset(self._added.values())
        contents: dict[int, bytes] = {}
        for token_id, piece in self._pieces.items():
            if token_id in literal:
                contents[token_id] = piece.encode()
            elif processor.is_byte(token_id):
                contents[token_id] = bytes([int(piece[3:-1], 16)])  # "<0x0A>"
            else:
                contents[token_id] = piece.replace(_SPACE, " ").encode()
        return contents


def _load(model: bytes) -> SentencePieceProcessor:
    try:
        processor = SentencePieceProcessor()
        processor.load_from_serialized_proto(model)
    except (RuntimeError, ValueError) as error:
        raise TokenizerError(
            f"holds no sentencepiece model ({error})",
            field="tokenizer.model",
            value=f"{len(model)} bytes",
            remedy="download the file again, or use a checkpoint with a tokenizer.json",
        ) from error
    return processor


def _all_pieces(processor: SentencePieceProcessor) -> list[str]:
    return [processor.id_to_piece(token_id) for token_id in range(processor.get_piece_size())]


def _added_ids(processor: SentencePieceProcessor, tokens: Sequence[AddedToken]) -> dict[str, int]:
    """The id of each added token: the settings' own, else that of the equal piece."""
    ids: dict[str, int] = {}
    for token in tokens:
        if token.token_id is not None:
            ids[token.content] = token.token_id
        else:
            known = processor.piece_to_id(token.content)
            if processor.id_to_piece(known) == token.content:
                ids[token.content] = known
    return ids


def _special_ids(
    processor: SentencePieceProcessor, added: dict[str, int], tokens: Sequence[AddedToken]
) -> frozenset[int]:
    """Control and unknown pieces, and the added tokens marked special."""
    size = processor.get_piece_size()
    own = {i for i in range(size) if processor.is_control(i) or processor.is_unknown(i)}
    marked = {added[token.content] for token in tokens if token.special and token.content in added}
    return frozenset(own | marked)


def _longest_first(contents: dict[str, int]) -> re.Pattern[str] | None:
    """A pattern that finds any of ``contents``, the longest of several at one place."""
    ordered = sorted(filter(None, contents), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None

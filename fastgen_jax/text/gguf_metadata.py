"""Typed, checked access to the tokenizer part of GGUF metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

from fastgen_jax.errors import TokenizerError
from fastgen_jax.text.sentencepiece_model import PieceType


class GgufVocabulary:
    """Reads the ``tokenizer.*`` keys; every method raises TokenizerError for a malformed value.

    Keys and meanings: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, "Tokenizer".
    """

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = fields
        self._tokens = self._token_list()

    def tokens(self) -> list[str]:
        """The vocabulary; ids are positions, and no token occurs twice."""
        return self._tokens

    def types(self) -> list[PieceType]:
        """The type of each token; all normal where the file has none."""
        key = "tokenizer.ggml.token_type"
        if key not in self._fields:
            return [PieceType.NORMAL] * len(self._tokens)
        numbers = self._numbers(key)
        try:
            # 0 is "undefined", which writers use for ordinary tokens.
            known = {number: PieceType(number or PieceType.NORMAL) for number in set(numbers)}
        except ValueError as error:
            raise self.damaged(key, str(error)) from error
        return [known[number] for number in numbers]

    def scores(self) -> list[float]:
        """The merge priority of each token, the highest first."""
        return self._numbers("tokenizer.ggml.scores")

    def merges(self) -> list[tuple[str, str]]:
        """The pairs of pieces to join, in order of priority."""
        key = "tokenizer.ggml.merges"
        parts = [merge.partition(" ") for merge in self._strings(key)]
        pairs = [(left, right) for left, _, right in parts]
        for index, (left, right) in enumerate(pairs):
            if not (left and right):
                raise self.damaged(key, f"merge {index} is no pair of pieces")
        return pairs

    def token_id(self, role: str) -> int | None:
        """The id of the "bos", "eos", "eot", "eom" or "unknown" token, or None if not given."""
        key = f"tokenizer.ggml.{role}_token_id"
        value = self._fields.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < len(self._tokens):
            raise TokenizerError(
                f"is no id of the {len(self._tokens)} tokens",
                field=key,
                value=value,
                remedy="convert the model again",
            )
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        """The truth value of ``key``, or ``default`` where the file lacks it."""
        value = self._fields.get(key, default)
        if not isinstance(value, bool):
            raise self.damaged(key, f"must be true or false, not {value!r}")
        return value

    def text(self, key: str) -> str:
        """The string of ``key``, which must be there."""
        value = self.optional_text(key)
        if value is None:
            raise self.damaged(key, "is missing")
        return value

    def optional_text(self, key: str) -> str | None:
        """The string of ``key``, or None where the file lacks it."""
        value = self._fields.get(key)
        if value is not None and not isinstance(value, str):
            raise self.damaged(key, f"must be a string, not {type(value).__name__}")
        return value

    def charsmap(self) -> bytes:
        """The compiled normalization rules of the sentencepiece model; empty for none."""
        key = "tokenizer.ggml.precompiled_charsmap"
        if key not in self._fields:
            return b""
        value = self._fields[key]
        if isinstance(value, bytes):
            return value
        values = self._list(key)
        if not set(map(type, values)) <= {int}:
            raise self.damaged(key, "must be an array of bytes")
        return bytes(byte & 0xFF for byte in cast("list[int]", values))  # int8 comes signed

    def damaged(self, key: str, problem: str) -> TokenizerError:
        """The error for a value the file's writer got wrong; raise it."""
        return TokenizerError(
            f"damaged tokenizer metadata: {problem}",
            field=key,
            value=self._fields.get(key),
            remedy="convert the model again, or put its tokenizer.json beside the file",
        )

    def _token_list(self) -> list[str]:
        key = "tokenizer.ggml.tokens"
        tokens = self._strings(key)
        if not tokens:
            raise self.damaged(key, "is empty")
        if len(set(tokens)) != len(tokens):
            repeated = [token for token, count in Counter(tokens).items() if count > 1]
            raise self.damaged(key, f"tokens occur twice: {repeated[:5]}")
        return tokens

    def _strings(self, key: str) -> list[str]:
        values = self._list(key)
        # A set of types is several times faster than a test of each of 50,000 values.
        if not set(map(type, values)) <= {str}:
            raise self.damaged(key, "must be a list of strings")
        return cast("list[str]", list(values))

    def _list(self, key: str) -> Sequence[object]:
        value = self._fields.get(key)
        if not isinstance(value, list | tuple):
            raise self.damaged(key, "is missing" if value is None else "must be a list")
        return value

    def _numbers(self, key: str) -> list[float]:
        values = self._list(key)
        if len(values) != len(self._tokens):
            raise self.damaged(key, f"has {len(values)} values for {len(self._tokens)} tokens")
        if not set(map(type, values)) <= {int, float}:
            raise self.damaged(key, "must be a list of numbers")
        return cast("list[float]", list(values))

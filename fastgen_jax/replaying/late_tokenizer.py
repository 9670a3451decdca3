"""A tokenizer that is loaded when a request of a simulated replay needs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastgen_jax.errors import FastGenError, ReplayError
from fastgen_jax.text import Tokenizer


class LateTokenizer:
    """The model's tokenizer, without the model; most replays never need one."""

    def __init__(self, model: str | Path | None, given: Tokenizer | None) -> None:
        """``given`` is used where it isn't None, else the one of ``model``."""
        self._model = model
        self._loaded = given

    def load(self, *, for_whom: str) -> None:
        """Have it loaded; the first call may take a while.

        Raises:
            ReplayError: there is none.
        """
        if self._loaded is not None:
            return
        remedy = "give the model (model=, --model), or a tokenizer (tokenizer=)"
        problem = f"{for_whom} has stop strings or bad words, which take the model's tokenizer"
        if self._model is None:
            raise ReplayError(problem, field="tokenizer", value=None, remedy=remedy)
        try:
            self._loaded = _tokenizer_of(self._model)
        except (FastGenError, OSError) as error:
            raise ReplayError(
                f"{problem}; {error}", field="model", value=str(self._model), remedy=remedy
            ) from error
        if self._loaded is None:
            raise ReplayError(
                f"{problem}; the model has none",
                field="model",
                value=str(self._model),
                remedy=remedy,
            )

    @property
    def vocab_size(self) -> int:
        """As the tokenizer's, once it is loaded; so are all of these."""
        return self._tokenizer.vocab_size

    @property
    def bos_token_id(self) -> int | None:
        """The id that begins a sequence."""
        return self._tokenizer.bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends generation."""
        return self._tokenizer.eos_token_ids

    @property
    def bos_token(self) -> str | None:
        """The string of ``bos_token_id``."""
        return self._tokenizer.bos_token

    @property
    def eos_token(self) -> str | None:
        """The string of the tokenizer's own end token."""
        return self._tokenizer.eos_token

    @property
    def chat_template(self) -> str | None:
        """The source of the chat template."""
        return self._tokenizer.chat_template

    @property
    def special_token_ids(self) -> frozenset[int]:
        """The ids that ``decode`` can leave out."""
        return self._tokenizer.special_token_ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of ``text``."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of the ids."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's own string for an id."""
        return self._tokenizer.id_to_token(token_id)

    @property
    def _tokenizer(self) -> Tokenizer:
        if self._loaded is None:
            raise AssertionError("no request was said to need the tokenizer")
        return self._loaded


def _tokenizer_of(model: str | Path) -> Tokenizer | None:
    """Opens the model's description alone, where it has one; this imports jax."""
    from fastgen_jax.config import EngineConfig
    from fastgen_jax.model_files import open_model, open_tokenizer
    from fastgen_jax.models.sources import resolve_model

    with open_model(resolve_model(model), EngineConfig(load_format="dummy")) as files:
        return open_tokenizer(files)

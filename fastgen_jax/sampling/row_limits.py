"""The static sizes of a device row, what they refuse, and how a row is laid out in one vector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from fastgen_jax.errors import ConfigError, InvalidRequestError
from fastgen_jax.sampling_params import SamplingParams

MASK_BITS = 32  # tokens per word of the allowed-token bitmask


class RowField(NamedTuple):
    """One array of a device row: its place in the packed vector and its neutral value."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    neutral: float
    start: int

    @property
    def stop(self) -> int:
        """End of the field's words in the packed vector."""
        return self.start + math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class RowLimits:
    """Sizes of everything a request may hold on the device; fixed when the engine starts.

    Attributes:
        max_num_seqs: S, device rows.
        max_model_len: tokens of one request, prompt and output.
        vocab_size: V, tokens the head gives logits for.
        max_logprobs: K, most alternatives per token for logprobs and prompt_logprobs.
        max_logit_bias: B, most entries of logit_bias.
        max_bad_words: W, most token sequences out of bad_words (each text makes one or two).
        max_bad_word_len: most tokens of one such sequence.
        max_stop_ids: EOS and stop tokens that min_tokens can hold back.
    """

    max_num_seqs: int
    max_model_len: int
    vocab_size: int
    max_logprobs: int = 20
    max_logit_bias: int = 64
    max_bad_words: int = 16
    max_bad_word_len: int = 8
    max_stop_ids: int = 16

    def __post_init__(self) -> None:
        """Refuse sizes that no state can have."""
        for name in ("max_num_seqs", "max_model_len", "vocab_size", "max_bad_word_len"):
            self._check_at_least(name, 1)
        for name in ("max_logprobs", "max_logit_bias", "max_bad_words", "max_stop_ids"):
            self._check_at_least(name, 0)
        if self.max_logprobs > self.vocab_size:
            raise ConfigError(
                f"exceeds the vocabulary of {self.vocab_size} tokens",
                field="max_logprobs",
                value=self.max_logprobs,
                remedy="lower it",
            )

    def _check_at_least(self, name: str, low: int) -> None:
        if getattr(self, name) < low:
            raise ConfigError(
                f"must be at least {low}", field=name, value=getattr(self, name), remedy="raise it"
            )

    @cached_property
    def fields(self) -> tuple[RowField, ...]:
        """Everything a row holds, in packed order: the history, the scalars, then the tables.

        Ids of -1 are empty slots.

        - min_position: stop_ids can't be drawn at positions below this one.
        - seed: high and low word of the request's random stream.
        - temperature: 0 is greedy.
        - top_k: V is off; top_p: 1 is off; min_p: 0 is off.
        - repetition_penalty: 1 is off; presence_penalty, frequency_penalty: 0 is off.
        - num_logprobs: alternatives wanted; -1 when not even the drawn token's is.
        - has_allowed, has_bias, has_bad_words: 1 when the table of the name is in use.
        - bias_ids, bias_values: tokens, and what is added to their logits.
        - bad_words: right-aligned sequences; the last token is masked where the others precede.
        - stop_ids: EOS and stop tokens held back below min_position.
        - allowed_mask: bit t % 32 of word t // 32 allows token t.
        """
        words = -(-self.vocab_size // MASK_BITS)
        specs: tuple[tuple[str, str, tuple[int, ...], float], ...] = (
            ("token_ids", "int32", (self.max_model_len,), 0),
            ("prompt_len", "int32", (), 0),
            ("min_position", "int32", (), 0),
            ("seed", "uint32", (2,), 0),
            ("temperature", "float32", (), 0.0),
            ("top_k", "int32", (), self.vocab_size),
            ("top_p", "float32", (), 1.0),
            ("min_p", "float32", (), 0.0),
            ("repetition_penalty", "float32", (), 1.0),
            ("presence_penalty", "float32", (), 0.0),
            ("frequency_penalty", "float32", (), 0.0),
            ("num_logprobs", "int32", (), -1),
            ("has_allowed", "int32", (), 0),
            ("has_bias", "int32", (), 0),
            ("has_bad_words", "int32", (), 0),
            ("bias_ids", "int32", (self.max_logit_bias,), -1),  # the first of the tables
            ("bias_values", "float32", (self.max_logit_bias,), 0.0),
            ("bad_words", "int32", (self.max_bad_words, self.max_bad_word_len), -1),
            ("stop_ids", "int32", (self.max_stop_ids,), -1),
            ("allowed_mask", "uint32", (words,), 2**MASK_BITS - 1),
        )
        fields: list[RowField] = []
        for spec in specs:
            fields.append(RowField(*spec, start=fields[-1].stop if fields else 0))
        return tuple(fields)

    @cached_property
    def field_slices(self) -> dict[str, slice]:
        """Each field's words in the packed vector."""
        return {field.name: slice(field.start, field.stop) for field in self.fields}

    @cached_property
    def setting_slices(self) -> dict[str, slice]:
        """Each field's columns in ``RowState.settings``: the packed vector less the history."""
        begin = self.max_model_len
        return {field.name: slice(field.start - begin, field.stop - begin) for field in self.fields}

    @property
    def num_scalars(self) -> int:
        """Columns of ``RowState.settings`` that come before the tables."""
        return self.setting_slices["bias_ids"].start

    @cached_property
    def neutral_row(self) -> np.ndarray:
        """The packed vector of a row that asks for nothing: int32 [P]; copy it, then fill it."""
        packed = np.zeros(self.fields[-1].stop, np.int32)
        for field in self.fields:
            packed[field.start : field.stop].view(field.dtype)[...] = field.neutral
        packed.flags.writeable = False
        return packed

    @property
    def neutral_settings(self) -> np.ndarray:
        """The neutral row of ``RowState.settings``: int32 [Q]."""
        return self.neutral_row[self.max_model_len :]


def check_limits(
    params: SamplingParams,
    eos_token_ids: Iterable[int],
    bad_word_ids: Sequence[Sequence[int]],
    limits: RowLimits,
) -> None:
    """Nothing, when the device row can hold what the request asks for.

    Args:
        params: what was asked for.
        eos_token_ids: the model's EOS tokens.
        bad_word_ids: params.bad_words as token sequences, every variant its own sequence.
        limits: the sizes of the engine's rows.

    Raises:
        InvalidRequestError: names the field, its value, the limit and the remedy.
    """
    for name in ("logprobs", "prompt_logprobs"):
        count = getattr(params, name)
        if count is not None and count > limits.max_logprobs:
            raise _over(name, count, "more alternatives", "max_logprobs", limits)
    if params.logit_bias:
        _check_ids("logit_bias", params.logit_bias, limits)
        if len(params.logit_bias) > limits.max_logit_bias:
            raise _over("logit_bias", params.logit_bias, "more entries", "max_logit_bias", limits)
    if params.allowed_token_ids is not None:
        _check_ids("allowed_token_ids", params.allowed_token_ids, limits)
    if params.stop_token_ids:
        _check_ids("stop_token_ids", params.stop_token_ids, limits)
    if params.min_tokens > 0:
        held_back = held_back_ids(params, eos_token_ids)
        if len(held_back) > limits.max_stop_ids:
            problem = "with min_tokens needs more EOS and stop tokens"
            raise _over("stop_token_ids", held_back, problem, "max_stop_ids", limits)
    _check_bad_words(params, bad_word_ids, limits)


def held_back_ids(params: SamplingParams, eos_token_ids: Iterable[int]) -> list[int]:
    """The tokens that can't be drawn below min_tokens, each once, in ascending order."""
    return sorted({*eos_token_ids, *(params.stop_token_ids or ())})


def _check_bad_words(
    params: SamplingParams, bad_word_ids: Sequence[Sequence[int]], limits: RowLimits
) -> None:
    if len(bad_word_ids) > limits.max_bad_words:
        problem = f"makes {len(bad_word_ids)} token sequences, more"
        raise _over("bad_words", params.bad_words, problem, "max_bad_words", limits)
    for word in bad_word_ids:
        if len(word) == 0:
            raise InvalidRequestError(
                "holds a text that has no tokens",
                field="bad_words",
                value=params.bad_words,
                remedy="remove it",
            )
        _check_ids("bad_words", word, limits)
        if len(word) > limits.max_bad_word_len:
            problem = f"makes a sequence of {len(word)} tokens, more"
            raise _over("bad_words", params.bad_words, problem, "max_bad_word_len", limits)


def _check_ids(name: str, token_ids: Iterable[int], limits: RowLimits) -> None:
    outside = [i for i in token_ids if not 0 <= i < limits.vocab_size]
    if outside:
        raise InvalidRequestError(
            f"token ids outside the vocabulary of {limits.vocab_size} tokens",
            field=name,
            value=outside,
            remedy=f"use ids from 0 to {limits.vocab_size - 1}",
        )


def _over(
    name: str, value: object, problem: str, limit: str, limits: RowLimits
) -> InvalidRequestError:
    return InvalidRequestError(
        f"{problem} than {limit}={getattr(limits, limit)}",
        field=name,
        value=value,
        remedy="ask for less"
        if limit in ("max_bad_word_len", "max_stop_ids")
        else f"raise {limit} in EngineConfig or ask for less",
    )

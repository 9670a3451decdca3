"""One request as one vector of int32: everything its device row holds, in a single transfer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.sampling.row_limits import MASK_BITS, RowLimits, check_limits, held_back_ids
from fastgen_jax.sampling_params import SamplingParams

# Beyond these, float32 arithmetic on logits could overflow; the outcome is the same at them.
MIN_TEMPERATURE = float(np.finfo(np.float32).tiny)
MAX_TEMPERATURE = 1e30
MIN_PENALTY, MAX_PENALTY = 1e-30, 1e30
MIN_TOP_P = float(np.finfo(np.float32).tiny)


def pack_row(
    limits: RowLimits,
    *,
    token_ids: Sequence[int] | np.ndarray,
    prompt_len: int,
    params: SamplingParams,
    seed: int,
    eos_token_ids: Iterable[int] = (),
    bad_word_ids: Sequence[Sequence[int]] = (),
) -> np.ndarray:
    """The request's device row as one int32 vector [P], floats bit-cast; ``write_row`` reads it.

    Args:
        limits: the sizes of the engine's rows.
        token_ids: the prompt and, after a preemption, the outputs so far.
        prompt_len: how many of them are the prompt.
        params: what was asked for.
        seed: the random stream, an integer in [0, 2**64).
        eos_token_ids: the model's EOS tokens, held back below min_tokens.
        bad_word_ids: params.bad_words as token sequences.

    Raises:
        InvalidRequestError: a limit is exceeded; see ``check_limits``.
    """
    check_limits(params, eos_token_ids, bad_word_ids, limits)
    if len(token_ids) > limits.max_model_len:
        raise InvalidRequestError(
            f"more tokens than max_model_len={limits.max_model_len}",
            field="len(token_ids)",
            value=len(token_ids),
            remedy="shorten the prompt or raise max_model_len in EngineConfig",
        )
    packed = limits.neutral_row.copy()
    packed[: len(token_ids)] = token_ids  # the first field
    _pack_numbers(packed, limits, prompt_len, params, seed)
    if params.allowed_token_ids is not None:
        _pack_allowed(packed, limits, params.allowed_token_ids)
    if params.logit_bias:
        count = len(params.logit_bias)
        packed[limits.field_slices["has_bias"]] = 1
        _words(packed, limits, "bias_ids")[:count] = list(params.logit_bias)
        _floats(packed, limits, "bias_values")[:count] = list(params.logit_bias.values())
    if bad_word_ids:
        # Right-aligned: the last column is the token to mask, the ones before it its context.
        packed[limits.field_slices["has_bad_words"]] = 1
        table = _words(packed, limits, "bad_words").reshape(-1, limits.max_bad_word_len)
        for slot, word in zip(table, bad_word_ids, strict=False):
            slot[-len(word) :] = word
    if params.min_tokens > 0:
        held_back = held_back_ids(params, eos_token_ids)
        _words(packed, limits, "stop_ids")[: len(held_back)] = held_back
    return packed


def _pack_numbers(
    packed: np.ndarray, limits: RowLimits, prompt_len: int, params: SamplingParams, seed: int
) -> None:
    place = limits.field_slices
    # A single most likely token is the greedy choice, and the greedy path is the quick one.
    greedy = params.is_greedy or params.top_k == 1
    packed[place["prompt_len"]] = prompt_len
    # A sum beyond the model's length acts like the length itself, and fits into an int32.
    packed[place["min_position"]] = min(prompt_len + params.min_tokens, limits.max_model_len)
    packed[place["seed"]].view(np.uint32)[:] = ((seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF)
    if params.logprobs is not None:
        packed[place["num_logprobs"]] = params.logprobs
    if not greedy:
        if params.top_k > 0:
            packed[place["top_k"]] = min(params.top_k, limits.vocab_size)
        temperature = min(max(params.temperature, MIN_TEMPERATURE), MAX_TEMPERATURE)
        _floats(packed, limits, "temperature")[:] = temperature
        _floats(packed, limits, "top_p")[:] = max(params.top_p, MIN_TOP_P)
        _floats(packed, limits, "min_p")[:] = abs(params.min_p)  # the bits of -0.0 have no place
    repetition = min(max(params.repetition_penalty, MIN_PENALTY), MAX_PENALTY)
    _floats(packed, limits, "repetition_penalty")[:] = repetition
    _floats(packed, limits, "presence_penalty")[:] = params.presence_penalty
    _floats(packed, limits, "frequency_penalty")[:] = params.frequency_penalty


def _pack_allowed(packed: np.ndarray, limits: RowLimits, allowed: Sequence[int]) -> None:
    packed[limits.field_slices["has_allowed"]] = 1
    mask = _words(packed, limits, "allowed_mask").view(np.uint32)
    ids = np.asarray(allowed, np.int64)
    bits = np.left_shift(np.uint32(1), (ids % MASK_BITS).astype(np.uint32))
    mask[:] = 0
    np.bitwise_or.at(mask, ids // MASK_BITS, bits)


def _words(packed: np.ndarray, limits: RowLimits, name: str) -> np.ndarray:
    return packed[limits.field_slices[name]]


def _floats(packed: np.ndarray, limits: RowLimits, name: str) -> np.ndarray:
    return packed[limits.field_slices[name]].view(np.float32)

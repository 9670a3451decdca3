"""The whole sampling contract for one row in plain numpy: slow, and meant to be read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

from fastgen_jax.sampling.threefry import uniform_pair
from fastgen_jax.sampling_params import SamplingParams

BLOCK = 128  # tokens per block of the draw


@dataclass(frozen=True)
class ReferenceSample:
    """What one row draws, and the distribution it is drawn from.

    Attributes:
        token_id: the drawn token; -1 when the row failed.
        probabilities: of every token, after everything; one-hot when greedy.
        chosen_logprob: raw log-probability of the token.
        rank: 1 + how many tokens are strictly likelier.
        top_ids: the most likely tokens, lower id first on ties.
        top_logprobs: their raw log-probabilities.
    """

    token_id: int
    probabilities: Float64[np.ndarray, " V"]
    chosen_logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


def sample_reference(
    logits: Float32[np.ndarray, " V"],
    params: SamplingParams,
    *,
    history: Sequence[int],
    prompt_len: int,
    seed: int,
    eos_token_ids: Iterable[int] = (),
    bad_word_ids: Sequence[Sequence[int]] = (),
    num_top: int = 20,
) -> ReferenceSample:
    """One token for one row: edits, temperature, filters, draw; the raw logprobs beside it."""
    failed = ReferenceSample(-1, np.zeros(len(logits)), 0.0, 0, [], [])
    if np.isnan(logits).any() or np.isposinf(logits).any():
        return failed
    exact = logits.astype(np.float64)
    edited = edit_reference(
        exact, params, list(history), prompt_len, set(eos_token_ids), bad_word_ids
    )
    if np.isneginf(edited).all():
        return failed
    if params.is_greedy or params.top_k == 1:
        token = int(np.argmax(edited))
        probabilities = np.eye(len(logits))[token]
    else:
        probabilities = filter_reference(edited, params)
        token = draw_reference(probabilities, seed, len(history))
    shifted = exact - exact.max()
    logprobs = shifted - np.log(np.exp(shifted).sum())
    order = np.argsort(-exact, kind="stable")[:num_top]
    return ReferenceSample(
        token_id=token,
        probabilities=probabilities,
        chosen_logprob=float(logprobs[token]),
        rank=1 + int((exact > exact[token]).sum()),
        top_ids=order.tolist(),
        top_logprobs=logprobs[order].tolist(),
    )


def edit_reference(
    logits: Float64[np.ndarray, " V"],
    params: SamplingParams,
    history: list[int],
    prompt_len: int,
    eos_token_ids: set[int],
    bad_word_ids: Sequence[Sequence[int]],
) -> Float64[np.ndarray, " V"]:
    """The logits after allowed ids, bad words, min_tokens, bias and the three penalties."""
    output = history[prompt_len:]
    is_allowed = np.ones(len(logits), bool)
    if params.allowed_token_ids is not None:
        is_allowed[:] = False
        is_allowed[list(params.allowed_token_ids)] = True
    is_banned = np.zeros(len(logits), bool)
    for word in bad_word_ids:
        prefix, last = list(word[:-1]), word[-1]
        if len(prefix) <= len(history) and history[len(history) - len(prefix) :] == prefix:
            is_banned[last] = True
    if len(output) < params.min_tokens:
        for token in eos_token_ids | set(params.stop_token_ids or ()):
            is_banned[token] = True
    edited = logits.copy()
    for token, bias in (params.logit_bias or {}).items():
        edited[token] += bias
    for token in set(history):
        repetition = params.repetition_penalty
        edited[token] = (
            edited[token] / repetition if edited[token] > 0 else edited[token] * repetition
        )
    for token in set(output):
        edited[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    edited[~is_allowed] = -np.inf
    if np.isneginf(edited[~is_banned]).all():  # nothing else is left: the ban is lifted
        edited[is_banned & ~np.isneginf(edited)] = 0.0
    else:
        edited[is_banned] = -np.inf
    return edited


def filter_reference(
    edited: Float64[np.ndarray, " V"], params: SamplingParams
) -> Float64[np.ndarray, " V"]:
    """The probabilities after temperature, min_p, top-k and top-p, by sorting."""
    weights = np.exp((edited - edited.max()) / params.temperature)
    weights[weights < params.min_p] = 0.0
    if 0 < params.top_k < len(weights):
        weights[weights < np.sort(weights)[-params.top_k]] = 0.0
    if params.top_p < 1:
        descending = np.sort(weights)[::-1]
        reached = np.cumsum(descending) >= params.top_p * weights.sum()
        weights[weights < descending[np.argmax(reached)]] = 0.0
    return weights / weights.sum()


def draw_reference(probabilities: Float64[np.ndarray, " V"], seed: int, position: int) -> int:
    """The token at the seed and position: first its block of 128 tokens, then the token in it."""
    high, low = np.array([seed >> 32], np.uint32), np.array([seed & 0xFFFFFFFF], np.uint32)
    words = uniform_pair((high, low), np.array([position], np.uint32))
    first, second = (float(word[0]) / 2**24 for word in words)
    padded = np.pad(probabilities, (0, -len(probabilities) % BLOCK)).reshape(-1, BLOCK)
    block = _invert(padded.sum(axis=1), first)
    return block * BLOCK + _invert(padded[block], second)


def _invert(weights: Float[np.ndarray, " N"], uniform: float) -> int:
    total = np.cumsum(weights)
    return int(np.argmax(total > uniform * total[-1]))

"""What a prompt and its parameters become: checked, numbered, seeded requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastgen_jax.completion import Completion
from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.request import Request
from fastgen_jax.sampling.packing import pack_row
from fastgen_jax.sampling.row_limits import RowLimits, check_limits
from fastgen_jax.sampling_params import MAX_SEED, SamplingParams
from fastgen_jax.scheduling.scheduler import Scheduler
from fastgen_jax.text import Tokenizer

_SEED_STRIDE = 0x9E3779B97F4A7C15  # odd, so that indices never collide modulo 2**64


class Intake:
    """Takes in what an engine is asked for; knows the limits, the tokenizer and the seeds."""

    def __init__(
        self,
        limits: RowLimits,
        *,
        tokenizer: Tokenizer | None,
        eos_token_ids: Sequence[int],
        seed: int,
    ) -> None:
        self._limits = limits
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self._seed = seed
        self._num_taken = 0
        self._bad_word_ids: dict[Request, list[list[int]]] = {}

    def check(
        self, token_ids: tuple[int, ...], params: SamplingParams, scheduler: Scheduler
    ) -> list[list[int]]:
        """The bad words as tokens, of a request that can be served.

        Raises:
            InvalidRequestError: names the field, its value and the remedy.
        """
        self._check_prompt(token_ids, params, scheduler)
        bad_word_ids = self._tokenize_bad_words(params)
        check_limits(params, self._eos(params), bad_word_ids, self._limits)
        return bad_word_ids

    def requests(
        self,
        token_ids: tuple[int, ...],
        params: SamplingParams,
        scheduler: Scheduler,
        *,
        arrival_time: float,
        priority: int,
        cache_salt: str | None,
        targets: LatencyTargets,
    ) -> list[Request]:
        """A request for each of the n completions of a prompt, none of them queued yet.

        Raises:
            InvalidRequestError: the request can't be served.
        """
        bad_word_ids = self.check(token_ids, params, scheduler)
        # The prompt's log-probabilities are the same for every completion: the first has them.
        other_params = params
        if params.n > 1 and params.prompt_logprobs is not None:
            other_params = replace(params, prompt_logprobs=None)
        number = self._num_taken
        self._num_taken += 1
        requests: list[Request] = []
        for index in range(params.n):
            request = Request(
                request_id=f"{number}" if params.n == 1 else f"{number}-{index}",
                prompt_token_ids=token_ids,
                params=params if index == 0 else other_params,
                max_output_tokens=params.max_tokens or self._limits.max_model_len,
                seed=self._seed_of(params, number, index),
                arrival_time=arrival_time,
                priority=priority,
                cache_salt=cache_salt,
                targets=targets,
            )
            if bad_word_ids:
                self._bad_word_ids[request] = bad_word_ids
            requests.append(request)
        return requests

    def completion(self, request: Request, index: int) -> Completion:
        """What a queued request grows into; its ``max_output_tokens`` is settled by then."""
        return Completion(
            request, index=index, tokenizer=self._tokenizer, eos_token_ids=self._eos_token_ids
        )

    def forget(self, request: Request) -> None:
        """Drop what was kept for a request that has ended."""
        self._bad_word_ids.pop(request, None)

    def pack_row(self, request: Request) -> np.ndarray:
        """What a request's device row is to hold."""
        return pack_row(
            self._limits,
            token_ids=request.token_ids,
            prompt_len=request.num_prompt_tokens,
            params=request.params,
            seed=request.seed,
            eos_token_ids=self._eos(request.params),
            bad_word_ids=self._bad_word_ids.get(request, ()),
        )

    def _eos(self, params: SamplingParams) -> frozenset[int]:
        return frozenset() if params.ignore_eos else self._eos_token_ids

    def _seed_of(self, params: SamplingParams, number: int, index: int) -> int:
        """The request's own seed, or one drawn from the engine's; children differ by index."""
        if params.seed is not None:
            return (params.seed + index * _SEED_STRIDE) % 2**64
        drawn = (self._seed + 1) * (MAX_SEED // 3) + (number + 1) * _SEED_STRIDE
        return (drawn + index * (_SEED_STRIDE >> 1 | 1)) % 2**64

    def _check_prompt(
        self, token_ids: tuple[int, ...], params: SamplingParams, scheduler: Scheduler
    ) -> None:
        num_tokens = len(token_ids)
        scheduler.check_fits(num_tokens)
        vocab_size = self._limits.vocab_size
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= vocab_size:
            raise InvalidRequestError(
                f"lies outside the vocabulary of {vocab_size} tokens",
                field="prompt_token_ids",
                value=low if low < 0 else high,
                remedy=f"use ids from 0 to {vocab_size - 1}",
            )
        max_len = self._limits.max_model_len
        if params.max_tokens is not None and num_tokens + params.max_tokens > max_len:
            raise InvalidRequestError(
                f"with the prompt's {num_tokens} tokens exceeds max_model_len={max_len}",
                field="max_tokens",
                value=params.max_tokens,
                remedy=f"ask for at most {max(max_len - num_tokens, 0)}, or None for what is left",
            )

    def _tokenize_bad_words(self, params: SamplingParams) -> list[list[int]]:
        """Each bad word as it is and behind a space, as token sequences, without repeats."""
        if not params.bad_words and not params.stop_strings:
            return []
        tokenizer = self._tokenizer
        if tokenizer is None:
            name = "bad_words" if params.bad_words else "stop"
            raise InvalidRequestError(
                "needs a tokenizer, and the model has none",
                field=name,
                value=getattr(params, name),
                remedy="use stop_token_ids, or a checkpoint with a tokenizer",
            )
        variants: dict[tuple[int, ...], None] = {}
        for word in params.bad_words or ():
            for text in (word, " " + word):
                variants[tuple(tokenizer.encode(text, add_special_tokens=False))] = None
        return [list(ids) for ids in variants]

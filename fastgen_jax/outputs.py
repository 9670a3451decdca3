"""What a caller gets back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fastgen_jax.request import FinishReason


class Logprob(NamedTuple):
    """One token's log-probability in the model's own distribution.

    ``rank`` is 1 for the most likely token; ``decoded_token`` is None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None


TokenLogprobs = Mapping[int, Logprob]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """Times of a completion in seconds on one monotonic clock, and what it cost.

    Attributes:
        arrival_time: when it was submitted.
        first_scheduled_time: when a step first ran part of it.
        first_token_time: when its first token was read.
        finished_time: when it ended.
        num_cached_tokens: prompt tokens that the prefix cache spared it, at the last admission.
        num_preemptions: how often it lost its blocks and was recomputed.
    """

    arrival_time: float
    first_scheduled_time: float | None
    first_token_time: float | None
    finished_time: float | None
    num_cached_tokens: int
    num_preemptions: int

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from submission to the first token."""
        if self.first_token_time is None:
            return None
        return self.first_token_time - self.arrival_time


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One completion of a prompt.

    Attributes:
        index: 0 to n - 1.
        text: "" where the model has no tokenizer.
        token_ids: every generated token, the one that ended it included.
        cumulative_logprob: sum over the tokens; None unless logprobs was asked for.
        logprobs: per token, the chosen one's and the k most likely ones' log-probabilities.
        finish_reason: why it ended.
        stop_reason: the stop string or stop token that ended it; None for EOS and length.
        error: what went wrong, with finish_reason ERROR.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None
    logprobs: tuple[TokenLogprobs, ...] | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    error: str | None
    metrics: RequestMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """A prompt and its completions.

    ``prompt`` is None where token ids were given. ``prompt_logprobs`` has an entry per prompt
    token, None for the first, which nothing precedes.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None
    outputs: tuple[CompletionOutput, ...]

    @property
    def metrics(self) -> RequestMetrics:
        """The first completion's times and costs."""
        return self.outputs[0].metrics

    def _repr_html_(self) -> str:
        from fastgen_jax.observe.output_html import output_html

        return output_html(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What a stream adds: new text and tokens of one completion; the last one says why it ended."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    def __str__(self) -> str:
        """The new text."""
        return self.text

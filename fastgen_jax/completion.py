"""One request's growing text and log-probabilities, and the decision that it has ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fastgen_jax.batching import StepResults
from fastgen_jax.outputs import CompletionOutput, Delta, Logprob, RequestMetrics, TokenLogprobs
from fastgen_jax.request import FinishReason, Request
from fastgen_jax.text import IncrementalDetokenizer, StopChecker, Tokenizer


class End(NamedTuple):
    """Why a completion ended."""

    reason: FinishReason
    stop_reason: int | str | None = None


class _DrawnLogprobs(NamedTuple):
    """One token's log-probabilities as the device gave them; decoded when somebody looks."""

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class Completion:
    """Everything the host keeps of a request besides its scheduling.

    Text is made when somebody looks at it: on every token only where stop strings must be found.

    Attributes:
        request: the tokens and counters.
        index: 0 to n - 1 among the completions of its prompt.
        stop_token_ids: every token that ends it, EOS included.
        looks_for_stop: True where every token may complete a stop string.
        max_length: prompt and output tokens at which it ends.
        first_scheduled_time, first_token_time, finished_time: on the engine's clock.
        wants_logprobs, wants_prompt_logprobs: what was asked for.
    """

    def __init__(
        self,
        request: Request,
        *,
        index: int,
        tokenizer: Tokenizer | None,
        eos_token_ids: frozenset[int],
    ) -> None:
        params = request.params
        self.request = request
        self.index = index
        self.first_scheduled_time: float | None = None
        self.first_token_time: float | None = None
        self.finished_time: float | None = None
        self.wants_logprobs = params.logprobs is not None
        self.wants_prompt_logprobs = params.prompt_logprobs is not None
        self._drawn_logprobs: list[_DrawnLogprobs] = []
        self._prompt_logprobs: dict[int, _DrawnLogprobs] = {}  # by position
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset() if params.ignore_eos else eos_token_ids
        self.stop_token_ids = frozenset(params.stop_token_ids or ()) | self._eos_token_ids
        self.max_length = request.num_prompt_tokens + request.max_output_tokens
        self._first_stop_length = request.num_prompt_tokens + params.min_tokens
        self._text = ""
        self._num_read = request.num_prompt_tokens  # tokens already turned into text
        self._num_told = request.num_prompt_tokens  # tokens already in a delta
        self._told_text = 0
        self._is_text_final = False
        self._detokenizer: IncrementalDetokenizer | None = None
        self._stop = None if tokenizer is None else self._new_stop()
        self.looks_for_stop = self._stop is not None

    def end_after(self, token_id: int) -> End | None:
        """Why the request ends with this token, just appended to it; None to go on.

        Stop tokens count before stop strings, and these before length.
        """
        if token_id in self.stop_token_ids:
            return End(FinishReason.STOP, None if token_id in self._eos_token_ids else token_id)
        if self._stop is not None:
            matched = self._match_stop()
            if matched is not None:
                return End(FinishReason.STOP, matched)
        if len(self.request.token_ids) >= self.max_length:
            return End(FinishReason.LENGTH)
        return None

    @property
    def text(self) -> str:
        """The text so far, without what may still turn out to be a stop string."""
        self._read_tokens()
        return self._text

    @property
    def logprobs(self) -> tuple[TokenLogprobs, ...] | None:
        """Per output token, its log-probabilities; None unless they were asked for."""
        if not self.wants_logprobs:
            return None
        return tuple(self._decode_logprobs(drawn) for drawn in self._drawn_logprobs)

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprobs | None, ...] | None:
        """Per prompt token, None for the first and those not computed yet, or None at all."""
        if not self.wants_prompt_logprobs:
            return None
        found = self._prompt_logprobs
        return tuple(
            self._decode_logprobs(found[position]) if position in found else None
            for position in range(self.request.num_prompt_tokens)
        )

    def add_logprobs(self, results: StepResults, row: int, token_id: int) -> None:
        """Keep the drawn token's log-probabilities out of the step's row."""
        count = self.request.params.logprobs or 0
        drawn = results.drawn
        self._drawn_logprobs.append(
            _DrawnLogprobs(
                token_id,
                drawn("logprob")[row],
                drawn("rank")[row],
                drawn("top_ids")[row][:count],
                drawn("top_logprobs")[row][:count],
            )
        )

    def add_prompt_logprobs(self, results: StepResults, first: int, start: int, count: int) -> None:
        """Keep the log-probabilities of the prompt tokens that follow the step's tokens.

        The step's tokens [first, first + count) stand at positions [start, start + count).
        """
        wanted = self.request.params.prompt_logprobs or 0
        following = self.request.prompt_token_ids[start + 1 : start + 1 + count]
        entries = slice(results.num_rows + first, results.num_rows + first + len(following))
        columns = zip(
            following,
            results.field("logprob")[entries].tolist(),
            results.field("rank")[entries].tolist(),
            results.field("top_ids")[entries, :wanted].tolist(),
            results.field("top_logprobs")[entries, :wanted].tolist(),
            strict=True,
        )
        for position, column in enumerate(columns, start=start + 1):
            self._prompt_logprobs[position] = _DrawnLogprobs(*column)

    def take_delta(self) -> Delta:
        """What was added since the last call."""
        request = self.request
        text = self.text
        delta = Delta(
            index=self.index,
            text=text[self._told_text :],
            token_ids=tuple(request.token_ids[self._num_told :]),
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason,
        )
        self._told_text, self._num_told = len(text), len(request.token_ids)
        return delta

    def output(self) -> CompletionOutput:
        """The completion as it stands."""
        request = self.request
        cumulative = None
        if self.wants_logprobs:
            cumulative = math.fsum(drawn.logprob for drawn in self._drawn_logprobs)
        return CompletionOutput(
            index=self.index,
            text=self.text,
            token_ids=tuple(request.output_token_ids),
            cumulative_logprob=cumulative,
            logprobs=self.logprobs,
            finish_reason=request.finish_reason,
            stop_reason=request.stop_reason,
            error=request.error,
            metrics=RequestMetrics(
                arrival_time=request.arrival_time,
                first_scheduled_time=self.first_scheduled_time,
                first_token_time=self.first_token_time,
                finished_time=self.finished_time,
                num_cached_tokens=request.num_cached_tokens,
                num_preemptions=request.num_preemptions,
            ),
        )

    def _match_stop(self) -> str | None:
        request = self.request
        if len(request.token_ids) < self._first_stop_length:
            return None
        result = self._append_to(len(request.token_ids))
        if result is not None:
            self._is_text_final = True
        return result

    def _read_tokens(self) -> None:
        """Turn the tokens not yet read into text, and release what was held back at the end."""
        if self._tokenizer is None or self._is_text_final:
            return
        request = self.request
        end = len(request.token_ids)
        is_ended = request.is_finished
        if is_ended and request.finish_reason is FinishReason.STOP:
            # The stop token is a control mark, not text, unless it was asked for.
            ended_by_token = not isinstance(request.stop_reason, str)
            if ended_by_token and not request.params.include_stop_str_in_output:
                end -= 1
        self._append_to(end)
        if is_ended:
            self._is_text_final = True
            tail = "" if self._detokenizer is None else self._detokenizer.finish()
            if self._stop is not None:
                self._text += self._stop.append(tail).text + self._stop.finish().text
            else:
                self._text += tail

    def _append_to(self, end: int) -> str | None:
        """Add the text of the tokens before ``end``; the stop string that ended it, if one did.

        A stop string counts when the token that completes it is the min_tokens-th or later.
        """
        token_ids = self.request.token_ids
        self._append(token_ids[self._num_read : min(end, self._first_stop_length - 1)], False)
        return self._append(token_ids[self._num_read : end], True)

    def _append(self, token_ids: Sequence[int], may_stop: bool) -> str | None:
        if not token_ids:
            return None
        self._num_read += len(token_ids)
        delta = self._open_detokenizer().append(token_ids)
        if self._stop is None:
            self._text += delta
            return None
        if not may_stop:
            self._pass_over_stops(delta)
            return None
        result = self._stop.append(delta)
        self._text += result.text
        return result.matched

    def _pass_over_stops(self, delta: str) -> None:
        """Add text from before min_tokens; a stop string in it is text, and the search goes on."""
        for character in delta:
            assert self._stop is not None
            result = self._stop.append(character)
            self._text += result.text
            if result.matched is not None:
                if not self.request.params.include_stop_str_in_output:
                    self._text += result.matched
                self._stop = self._new_stop()

    def _new_stop(self) -> StopChecker | None:
        params = self.request.params
        if not params.stop_strings:
            return None
        return StopChecker(params.stop_strings, params.include_stop_str_in_output)

    def _open_detokenizer(self) -> IncrementalDetokenizer:
        """The detokenizer, made at its first use: who wants no text shouldn't pay for it."""
        if self._detokenizer is None:
            assert self._tokenizer is not None
            self._detokenizer = IncrementalDetokenizer(
                self._tokenizer,
                skip_special_tokens=self.request.params.skip_special_tokens,
                prompt_token_ids=self.request.prompt_token_ids,
            )
        return self._detokenizer

    def _decode_logprobs(self, drawn: _DrawnLogprobs) -> TokenLogprobs:
        """By token id, the token's own entry first, then the most likely ones in their order."""
        token_id = drawn.token_id
        found = {token_id: Logprob(drawn.logprob, drawn.rank, self._decode(token_id))}
        tops = zip(drawn.top_ids, drawn.top_logprobs, strict=True)
        for place, (top_id, logprob) in enumerate(tops, start=1):
            if top_id != token_id:
                found[top_id] = Logprob(logprob, place, self._decode(top_id))
        return found

    def _decode(self, token_id: int) -> str | None:
        tokenizer = self._tokenizer
        return (
            None if tokenizer is None else tokenizer.decode([token_id], skip_special_tokens=False)
        )

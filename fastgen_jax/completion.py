"""One request's growing text and log-probabilities, and the decision that it has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fastgen_jax.batching import StepResults
from fastgen_jax.outputs import CompletionOutput, Delta, Logprob, RequestMetrics, TokenLogprobs
from fastgen_jax.request import FinishReason, Request
from fastgen_jax.text import IncrementalDetokenizer, StopChecker, Tokenizer


class End(NamedTuple):
    """Why a completion ended."""

    reason: FinishReason
    stop_reason: int | str | None = None


class Completion:
    """Everything the host keeps of a request besides its scheduling.

    Text is made when somebody looks at it: on every token only where stop strings must be found.
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
        self.logprobs: list[TokenLogprobs] | None = None if params.logprobs is None else []
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        if params.prompt_logprobs is not None:
            self.prompt_logprobs = [None] * request.num_prompt_tokens
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset() if params.ignore_eos else eos_token_ids
        self._stop_token_ids = frozenset(params.stop_token_ids or ())
        self._length = request.num_prompt_tokens + request.max_output_tokens
        self._first_stop_length = request.num_prompt_tokens + params.min_tokens
        self._text = ""
        self._num_read = request.num_prompt_tokens  # tokens already turned into text
        self._num_told = request.num_prompt_tokens  # tokens already in a delta
        self._told_text = 0
        self._is_text_final = False
        self._detokenizer: IncrementalDetokenizer | None = None
        self._stop: StopChecker | None = None
        if tokenizer is not None:
            self._detokenizer = IncrementalDetokenizer(
                tokenizer,
                skip_special_tokens=params.skip_special_tokens,
                prompt_token_ids=request.prompt_token_ids,
            )
            if params.stop_strings:
                self._stop = StopChecker(params.stop_strings, params.include_stop_str_in_output)

    def end_after(self, token_id: int) -> End | None:
        """Why the request ends with this token, just appended to it; None to go on.

        Stop tokens count before stop strings, and these before length.
        """
        request = self.request
        if token_id in self._eos_token_ids:
            return End(FinishReason.STOP)
        if token_id in self._stop_token_ids:
            return End(FinishReason.STOP, token_id)
        if self._stop is not None:
            matched = self._match_stop()
            if matched is not None:
                return End(FinishReason.STOP, matched)
        if len(request.token_ids) >= self._length:
            return End(FinishReason.LENGTH)
        return None

    @property
    def text(self) -> str:
        """The text so far, without what may still turn out to be a stop string."""
        self._read_tokens()
        return self._text

    def add_logprobs(self, results: StepResults, row: int, token_id: int) -> None:
        """Keep the drawn token's log-probabilities out of the step's row."""
        assert self.logprobs is not None
        count = self.request.params.logprobs or 0
        self.logprobs.append(self._token_logprobs(results, row, token_id, count))

    def add_prompt_logprobs(self, results: StepResults, first: int, start: int, count: int) -> None:
        """Keep the log-probabilities of the prompt tokens that follow the step's tokens.

        The step's tokens [first, first + count) stand at positions [start, start + count).
        """
        assert self.prompt_logprobs is not None
        prompt = self.request.prompt_token_ids
        wanted = self.request.params.prompt_logprobs or 0
        for i in range(min(count, len(prompt) - 1 - start)):
            entry = results.num_rows + first + i
            following = start + i + 1
            self.prompt_logprobs[following] = self._token_logprobs(
                results, entry, prompt[following], wanted
            )

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
        logprobs = None if self.logprobs is None else tuple(self.logprobs)
        tokens = tuple(request.output_token_ids)
        cumulative = None
        if logprobs is not None:
            pairs = zip(tokens, logprobs, strict=True)
            cumulative = sum(entry[token].logprob for token, entry in pairs)
        return CompletionOutput(
            index=self.index,
            text=self.text,
            token_ids=tokens,
            cumulative_logprob=cumulative,
            logprobs=logprobs,
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
        assert self._stop is not None
        if self._num_read < self._first_stop_length - 1:
            # Text from before min_tokens holds no stop string by definition.
            self._append(request.token_ids[self._num_read : self._first_stop_length - 1], None)
        result = self._append(request.token_ids[self._num_read :], self._stop)
        if result is not None:
            self._is_text_final = True
        return result

    def _read_tokens(self) -> None:
        """Turn the tokens not yet read into text, and release what was held back at the end."""
        if self._detokenizer is None or self._is_text_final:
            return
        request = self.request
        end = len(request.token_ids)
        is_ended = request.is_finished
        if is_ended and request.finish_reason is FinishReason.STOP:
            # The stop token is a control mark, not text, unless it was asked for.
            ended_by_token = not isinstance(request.stop_reason, str)
            if ended_by_token and not request.params.include_stop_str_in_output:
                end -= 1
        if self._stop is None or len(request.token_ids) < self._first_stop_length:
            self._append(request.token_ids[self._num_read : end], None)
        elif self._num_read < end:
            self._append(request.token_ids[self._num_read : end], self._stop)
        if is_ended:
            self._is_text_final = True
            tail = self._detokenizer.finish()
            if self._stop is not None:
                self._text += self._stop.append(tail).text + self._stop.finish().text
            else:
                self._text += tail

    def _append(self, token_ids: list[int], stop: StopChecker | None) -> str | None:
        assert self._detokenizer is not None
        if not token_ids:
            return None
        self._num_read += len(token_ids)
        delta = self._detokenizer.append(token_ids)
        if stop is None:
            self._text += delta
            return None
        result = stop.append(delta)
        self._text += result.text
        return result.matched

    def _token_logprobs(
        self, results: StepResults, entry: int, token_id: int, count: int
    ) -> TokenLogprobs:
        decode = self._decoder()
        logprob = float(results.field("logprob")[entry])
        rank = int(results.field("rank")[entry])
        found = {token_id: Logprob(logprob, rank, decode(token_id))}
        top_ids = results.field("top_ids")[entry, :count].tolist()
        top_logprobs = results.field("top_logprobs")[entry, :count].tolist()
        for place, (top_id, top) in enumerate(zip(top_ids, top_logprobs, strict=True), start=1):
            found.setdefault(top_id, Logprob(top, place, decode(top_id)))
        return found

    def _decoder(self) -> Callable[[int], str | None]:
        tokenizer = self._tokenizer
        if tokenizer is None:
            return lambda _: None
        return lambda token_id: tokenizer.decode([token_id], skip_special_tokens=False)

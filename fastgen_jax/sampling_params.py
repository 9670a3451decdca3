"""How one request's tokens are drawn, and when it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from fastgen_jax.errors import InvalidRequestError

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """What a request asks of the sampler; every field is honoured or refused.

    Order of the processing, per row: allowed_token_ids, bad_words, min_tokens, logit_bias,
    repetition_penalty, frequency and presence penalty, temperature, min_p, top_k, top_p, draw.
    ``docs/sampling.md`` is the contract in full.

    Attributes:
        n: independent completions of one prompt; needs temperature > 0 when above 1.
        temperature: 0 is greedy; greedy makes top_k, top_p, min_p and seed neutral.
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p; in (0, 1].
        min_p: drop tokens less likely than min_p times the most likely one; in [0, 1].
        repetition_penalty: over prompt and output; divides positive logits, multiplies others.
        presence_penalty: subtracted once from tokens already generated; in [-2, 2].
        frequency_penalty: subtracted per earlier generation of the token; in [-2, 2].
        logit_bias: token id to a number in [-100, 100] added to its logit.
        allowed_token_ids: only these tokens can be drawn.
        bad_words: texts that must not be generated, with or without a leading space.
        min_tokens: EOS and stop_token_ids can't be drawn before so many tokens; stop strings
            aren't looked for before either.
        seed: same seed, same tokens: independent of neighbours, preemption and chunking.
        logprobs: log-probabilities of the k most likely tokens and of the drawn one, per token,
            of the model's own distribution (before any of the above); 0 is the drawn one alone.
        prompt_logprobs: the same for each prompt token but the first.
        stop: texts that end the request; excluded from the text unless
            include_stop_str_in_output.
        stop_token_ids: tokens that end the request besides the model's EOS tokens.
        ignore_eos: go on after EOS.
        max_tokens: most tokens to generate; None goes on to the model's length.
        include_stop_str_in_output: leave the matched stop string at the end of the text.
        skip_special_tokens: leave special tokens out of the text.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    min_tokens: int = 0
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        """Refuse what can't be honoured, naming the field."""
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise _invalid(self, name, "must be True or False")
        _check_int(self, "n", 1, None)
        _check_int(self, "top_k", -1, None)
        _check_int(self, "min_tokens", 0, None)
        for name, low in (("max_tokens", 1), ("logprobs", 0), ("prompt_logprobs", 0)):
            if getattr(self, name) is not None:
                _check_int(self, name, low, None)
        if self.seed is not None:
            _check_int(self, "seed", 0, MAX_SEED)
        _check_float(self, "temperature", 0.0, math.inf)
        _check_float(self, "top_p", 0.0, 1.0, low_open=True)
        _check_float(self, "min_p", 0.0, 1.0)
        _check_float(self, "repetition_penalty", 0.0, math.inf, low_open=True)
        _check_float(self, "presence_penalty", -2.0, 2.0)
        _check_float(self, "frequency_penalty", -2.0, 2.0)
        self._check_collections()
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _invalid(self, "min_tokens", f"exceeds max_tokens={self.max_tokens}", "lower it")
        if self.n > 1 and self.is_greedy:
            raise _invalid(
                self, "n", "greedy completions would all be equal", "set temperature above 0"
            )

    def _check_collections(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        for name, strings in (("stop", stop), ("bad_words", self.bad_words)):
            if strings is None:
                continue
            if isinstance(strings, str) or not all(isinstance(s, str) and s for s in strings):
                raise _invalid(self, name, "must hold non-empty strings")
        for name in ("stop_token_ids", "allowed_token_ids"):
            ids = getattr(self, name)
            if ids is not None and not all(_is_int(i) and i >= 0 for i in ids):
                raise _invalid(self, name, "must hold token ids, integers from 0 on")
        if self.allowed_token_ids is not None and len(self.allowed_token_ids) == 0:
            raise _invalid(
                self, "allowed_token_ids", "allows no token at all", "use None to allow every token"
            )
        if self.logit_bias is not None:
            for token_id, bias in self.logit_bias.items():
                in_range = _is_number(bias) and -100.0 <= bias <= 100.0
                if not (_is_int(token_id) and token_id >= 0 and in_range):
                    raise _invalid(
                        self, "logit_bias", "must map token ids to numbers in [-100, 100]"
                    )

    @property
    def is_greedy(self) -> bool:
        """True when the most likely token is always taken."""
        return self.temperature == 0.0

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop texts as a tuple, whatever form they were given in."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> SamplingParams:
        """SamplingParams from names and values; an unknown name is refused."""
        known = [field.name for field in fields(cls)]
        for name, value in values.items():
            if name not in known:
                raise InvalidRequestError(
                    "is no sampling parameter",
                    field=name,
                    value=value,
                    remedy="known ones are " + ", ".join(known),
                )
        return cls(**values)  # pyright: ignore[reportArgumentType]  # checked in __post_init__


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_int(params: SamplingParams, name: str, low: int, high: int | None) -> None:
    value = getattr(params, name)
    if not _is_int(value) or value < low or (high is not None and value > high):
        limit = f"from {low} on" if high is None else f"from {low} to {high}"
        raise _invalid(params, name, f"must be an integer {limit}")


def _check_float(
    params: SamplingParams, name: str, low: float, high: float, *, low_open: bool = False
) -> None:
    value = getattr(params, name)
    if not _is_number(value) or not low <= value <= high or (low_open and value == low):
        limit = f"above {low}" if low_open else f"from {low} on"
        upper = "" if high == math.inf else f" up to {high}"
        raise _invalid(params, name, f"must be a finite number {limit}{upper}")


def _invalid(
    params: SamplingParams, name: str, problem: str, remedy: str | None = None
) -> InvalidRequestError:
    return InvalidRequestError(problem, field=name, value=getattr(params, name), remedy=remedy)

"""The request mix of a measurement: how long prompts and outputs are, and which tokens."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """Lengths drawn from normal distributions, as in the FastGen paper's evaluation.

    Attributes:
        num_requests: prompts in all.
        prompt_mean: tokens of a prompt.
        output_mean: tokens of an output.
        relative_deviation: standard deviation over the mean, of both; the paper's "30 % variance".
        min_length: shorter draws count as this long.
        vocab_size: prompt tokens are drawn evenly from its ids, without the lowest
            ``num_special_ids``, which may be control tokens.
        num_special_ids: ids from 0 on that no prompt holds.
        seed: same seed, same workload.
    """

    num_requests: int = 32
    prompt_mean: float = 256.0
    output_mean: float = 64.0
    relative_deviation: float = 0.3
    min_length: int = 4
    vocab_size: int = 49152
    num_special_ids: int = 100
    seed: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadRequest:
    """One prompt, and how many tokens to generate after it: exactly so many, EOS or not."""

    prompt_token_ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The requests that every engine of a comparison gets, and the mix they were drawn from."""

    mix: Mix
    requests: tuple[WorkloadRequest, ...]

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(request.prompt_token_ids) for request in self.requests)

    @property
    def num_output_tokens(self) -> int:
        """Tokens of all outputs."""
        return sum(request.max_tokens for request in self.requests)

    @property
    def max_request_tokens(self) -> int:
        """Prompt and output of the longest request."""
        return max(len(r.prompt_token_ids) + r.max_tokens for r in self.requests)

    def to_json(self) -> str:
        """The workload as text that ``from_json`` reads back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Workload:
        """The workload that ``to_json`` wrote."""
        data = json.loads(text)
        requests = tuple(
            WorkloadRequest(
                prompt_token_ids=tuple(item["prompt_token_ids"]), max_tokens=item["max_tokens"]
            )
            for item in data["requests"]
        )
        return cls(mix=Mix(**data["mix"]), requests=requests)


def draw_workload(mix: Mix) -> Workload:
    """The workload of a mix; the same one for the same mix."""
    rng = np.random.default_rng(mix.seed)
    prompt_lengths = _draw_lengths(rng, mix, mix.prompt_mean)
    output_lengths = _draw_lengths(rng, mix, mix.output_mean)
    requests = tuple(
        WorkloadRequest(
            prompt_token_ids=tuple(
                rng.integers(mix.num_special_ids, mix.vocab_size, prompt_length).tolist()
            ),
            max_tokens=output_length,
        )
        for prompt_length, output_length in zip(prompt_lengths, output_lengths, strict=True)
    )
    return Workload(mix=mix, requests=requests)


def _draw_lengths(rng: np.random.Generator, mix: Mix, mean: float) -> list[int]:
    lengths = rng.normal(mean, mix.relative_deviation * mean, mix.num_requests)
    return np.maximum(np.rint(lengths).astype(int), mix.min_length).tolist()

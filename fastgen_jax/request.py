"""One prompt on its way to one completion."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.sampling_params import SamplingParams

_NO_TARGETS = LatencyTargets()


class RequestState(Enum):
    """Where a request stands; ``Request.finish`` and the scheduler are the only writers."""

    WAITING = "waiting"  # queued: new, or preempted
    RUNNING = "running"  # holds a row and blocks
    FINISHED = "finished"


class FinishReason(Enum):
    """Why a request ended."""

    STOP = "stop"  # EOS, a stop token, or a stop string; stop_reason says which
    LENGTH = "length"  # max_tokens or the model's length
    ABORT = "abort"
    ERROR = "error"  # this request failed; ``Request.error`` says why


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """A request's identity and counters; lists grow, nothing is ever lost on preemption.

    Two counters run ahead of the known tokens, since steps are planned before the tokens of the
    step in flight are read: ``num_tokens`` counts prompt, read and in-flight output tokens;
    ``num_computed_tokens`` counts those whose keys and values are in the cache or will be when
    the step in flight ends. While a request decodes, a column of the scheduler counts for it.

    Attributes:
        request_id: unique within the engine.
        prompt_token_ids: the prompt, never changed.
        params: what was asked for.
        max_output_tokens: params.max_tokens bounded by the model's length; set on submission.
        seed: the random stream's seed, drawn by the engine where params.seed is None.
        arrival_index: position in the order of submission, set by the scheduler; ties end here.
        arrival_time: seconds on the engine's clock.
        priority: lower runs earlier under the ``priority`` policy.
        cache_salt: requests share cached prefixes only with requests of the same salt.
        targets: how fast it wants its tokens.
        token_ids: prompt, then every output token read so far.
        row: the device row held while running, else -1.
        block_ids: blocks held, in order of position.
        num_cached_tokens: prompt tokens found in the prefix cache since the last admission.
        num_lost_tokens: the most that were computed when it was preempted; 0 before.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    max_output_tokens: int
    seed: int = 0
    arrival_index: int = 0
    arrival_time: float = 0.0
    priority: int = 0
    cache_salt: str | None = None
    targets: LatencyTargets = _NO_TARGETS

    state: RequestState = RequestState.WAITING
    token_ids: list[int] = field(default_factory=list)
    row: int = -1
    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)
    num_hashed_blocks: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_lost_tokens: int = 0
    num_skips: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    _num_tokens: int = field(default=0, init=False)
    _num_computed: int = field(default=0, init=False)
    _column: np.ndarray | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Start with the prompt as the known tokens."""
        if not self.token_ids:
            self.token_ids = list(self.prompt_token_ids)
        self._num_tokens = len(self.token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt, read and in-flight output tokens."""
        return self._num_tokens if self._column is None else self.num_computed_tokens + 1

    @num_tokens.setter
    def num_tokens(self, value: int) -> None:
        self._num_tokens = value

    @property
    def num_computed_tokens(self) -> int:
        """Tokens with keys and values in the cache, now or when the steps in flight end."""
        return self._num_computed if self._column is None else int(self._column[self.row])

    @num_computed_tokens.setter
    def num_computed_tokens(self, value: int) -> None:
        self._num_computed = value

    def count_in(self, column: np.ndarray) -> None:
        """Let ``column[row]`` count the computed tokens from now on; one more is known."""
        column[self.row] = self._num_computed
        self._column = column

    def count_alone(self) -> None:
        """Take the counts back from the column; nothing when there is none."""
        if self._column is not None:
            self._num_computed = self.num_computed_tokens
            self._num_tokens = self._num_computed + 1
            self._column = None

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Output tokens read back so far (in-flight ones not counted)."""
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def output_token_ids(self) -> list[int]:
        """Output tokens read back so far."""
        return self.token_ids[len(self.prompt_token_ids) :]

    @property
    def is_finished(self) -> bool:
        """True once the request has ended for any reason."""
        return self.state is RequestState.FINISHED

    @property
    def is_fully_planned(self) -> bool:
        """True when its last possible token is already in flight: nothing left to schedule."""
        return self.num_tokens >= len(self.prompt_token_ids) + self.max_output_tokens

"""The completions that haven't ended, and which of a step's rows need a look at each token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Int32

from fastgen_jax.completion import Completion
from fastgen_jax.request import Request
from fastgen_jax.scheduling.plan import StepPlan


class LiveCompletions:
    """Completions by request, from submission to end.

    Nearly every token that is read is appended and that is all. ``watched`` and ``may_stop`` find
    the rows where more has to be done, for all rows at once; they may name a row too many, never
    one too few.
    """

    def __init__(self, *, max_num_seqs: int, vocab_size: int, block_size: int) -> None:
        self._completions: dict[Request, Completion] = {}
        self._block_size = block_size
        # By device row, for the request that holds it.
        self._is_watched = np.zeros(max_num_seqs, np.bool_)
        self._max_length = np.zeros(max_num_seqs, np.int32)
        # How many completions end with each token; the last entry is for a failed draw, -1.
        self._num_stopping = np.zeros(vocab_size + 1, np.int32)
        self._num_stopping[-1] = 1

    def __contains__(self, request: Request) -> bool:
        return request in self._completions

    def __getitem__(self, request: Request) -> Completion:
        return self._completions[request]

    def __iter__(self) -> Iterator[Request]:
        return iter(tuple(self._completions))

    def of(self, requests: Iterable[Request]) -> Iterator[Completion | None]:
        """Each request's completion, None where it has ended."""
        return map(self._completions.get, requests)

    def add(self, completion: Completion) -> None:
        """Keep a completion till its end."""
        self._completions[completion.request] = completion
        self._num_stopping[self._drawable_stops(completion)] += 1

    def remove(self, request: Request) -> Completion:
        """The completion, which has ended."""
        completion = self._completions.pop(request)
        self._num_stopping[self._drawable_stops(completion)] -= 1
        return completion

    def admit(self, completion: Completion) -> None:
        """Note what there is to watch for in the device row that the request just got."""
        row = completion.request.row
        self._is_watched[row] = completion.wants_logprobs or completion.looks_for_stop
        self._max_length[row] = completion.max_length

    def watched(self, plan: StepPlan) -> Bool[np.ndarray, "C R"]:
        """The rows to look at whatever they draw, for each of C chained steps.

        To be asked before another plan is made. Those that ask for it, that fill a block, that end
        by length, and prompts.
        """
        rows = plan.rows
        lengths = rows.starts + rows.lengths + np.arange(1, plan.chain_length + 1)[:, None]
        watched = lengths % self._block_size == 0
        watched |= lengths >= self._max_length[rows.device_rows]
        watched |= self._is_watched[rows.device_rows]
        watched[:, plan.num_settled :] = True
        return watched

    def may_stop(self, token_ids: Int32[np.ndarray, "R"]) -> Bool[np.ndarray, "R"]:
        """Where a drawn token ends some completion, or no token could be drawn."""
        return self._num_stopping[token_ids] > 0

    def _drawable_stops(self, completion: Completion) -> list[int]:
        vocab_size = len(self._num_stopping) - 1
        return [token_id for token_id in completion.stop_token_ids if token_id < vocab_size]

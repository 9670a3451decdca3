"""What happens in an engine, as plain data: one dictionary an event."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastgen_jax.batching import StepShape
from fastgen_jax.observe.observer import Observer
from fastgen_jax.observe.policy_data import policy_to_data
from fastgen_jax.observe.submissions import submission_to_data
from fastgen_jax.request import FinishReason, Request, RequestState
from fastgen_jax.scheduling.plan import StepPlan
from fastgen_jax.scheduling.policy import Policy

INPUTS = frozenset({"submit", "abort", "shapes", "policy", "close"})
"""Events that came from outside; a plan stands for the call of ``step`` that made it."""
OUTPUTS = frozenset({"plan", "tokens", "end", "failed"})
"""Events that the engine made of them."""

_DIGEST_BYTES = 8
_FINISHED = RequestState.FINISHED

type Event = dict[str, Any]


class EventStream(Observer, ABC):
    """An observer that makes an event of all it is told; docs/replay.md lists their fields."""

    _is_launching = False

    @abstractmethod
    def emit(self, event: Event) -> None:
        """Something happened."""

    def shapes_changed(self, shapes: Sequence[StepShape]) -> None:
        """Steps have one of these shapes from now on."""
        self.emit({"event": "shapes", "shapes": [list(shape) for shape in shapes]})

    def policy_changed(self, policy: str | Policy, token_budget: int) -> None:
        """Another policy plans from now on."""
        data = policy_to_data(policy)
        self.emit({"event": "policy", "policy": data, "token_budget": token_budget})

    def submitted(self, requests: Sequence[Request]) -> None:
        """A call of ``submit`` queued these."""
        self.emit({"event": "submit", **submission_to_data(requests[0])})

    def planned(self, plan: StepPlan) -> None:
        """A plan was made."""
        rows = plan.rows
        self._is_launching = not plan.is_empty
        samples = rows.samples.tolist()
        event: Event = {
            "event": "plan",
            "step": plan.step_index,
            "time": plan.time,
            "chain_length": plan.chain_length,
            "requests": [request.request_id for request in rows.requests],
            "starts": rows.starts.tolist(),
            "tokens": rows.lengths.tolist(),
            "samples": samples if False in samples else True,
            "free_blocks": plan.num_free_blocks,
        }
        if plan.waits:
            event["waits"] = [[request.request_id, why.value] for request, why in plan.waits]
        if plan.preempted:
            event["preempted"] = [[victim.request_id, winner] for victim, winner in plan.preempted]
        self.emit(event)

    def launched(self, plan: StepPlan, shape: StepShape) -> None:
        """A plan was given to the device: no event, as the plan and the shapes say which shape."""
        self._is_launching = False

    def read(self, plan: StepPlan, step: int, token_ids: Sequence[int], now: float) -> None:
        """The results of a step came."""
        rows = plan.rows
        tokens: list[int | None] = [
            None if request.state is _FINISHED else token_id
            for request, token_id in zip(rows.requests, token_ids, strict=False)
        ]
        if plan.num_settled < len(tokens):  # some may not have drawn
            drawn = zip(tokens, rows.samples.tolist(), strict=True)
            tokens = [token if samples else None for token, samples in drawn]
        self.emit({"event": "tokens", "step": plan.step_index, "turn": step, "tokens": tokens})

    def ended(self, request: Request, now: float) -> None:
        """A request has ended."""
        assert request.finish_reason is not None
        output = request.output_token_ids
        event: Event = {
            "event": "abort" if request.finish_reason is FinishReason.ABORT else "end",
            "request": request.request_id,
            "reason": request.finish_reason.value,
            "stop_reason": request.stop_reason,
            "num_tokens": len(output),
            "digest": digest_of(output),
            "num_preemptions": request.num_preemptions,
        }
        if request.error is not None:
            event["error"] = request.error
        self.emit(event)

    def failed(self, problem: str) -> None:
        """A step failed."""
        self.emit({"event": "failed", "error": problem, "launching": self._is_launching})

    def closed(self) -> None:
        """The engine was closed."""
        self.emit({"event": "close"})


def digest_of(token_ids: Sequence[int]) -> str:
    """16 hexadecimal digits that other tokens wouldn't have."""
    data = np.asarray(token_ids, "<i4").tobytes()
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()

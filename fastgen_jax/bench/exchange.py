"""One request of a measured run, as its client saw it: what was asked, and what came when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.latency_targets import LatencyTargets

# How the number of tokens in each message was found.
COUNTED_IDS = "ids"  # every message carried its token ids
COUNTED_USAGE = "usage"  # one token a message; what the server counted beyond, by text
COUNTED_MESSAGES = "messages"  # one token a message; the server told no total


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exchange:
    """A request's record, and what only a real run has; seconds since the run's start.

    Attributes:
        record: what every judgement is made from; ``arrival_time`` is when it was really sent.
        scheduled_time: when the workload wanted it sent.
        num_asked_tokens: output tokens that were asked for.
        message_sizes: tokens of each message in which the answer came, in order.
        counting: how these were found: "ids", "usage" or "messages".
        error: why it failed; None where it didn't.
        num_server_prompt_tokens, num_server_output_tokens: what the server counted, if it told.
    """

    record: RequestRecord
    scheduled_time: float
    num_asked_tokens: int
    message_sizes: tuple[int, ...]
    counting: str
    error: str | None = None
    num_server_prompt_tokens: int | None = None
    num_server_output_tokens: int | None = None

    @property
    def lateness(self) -> float:
        """Seconds by which the load generator sent it too late; the server's latency has no part.

        The event loop's timers may be early by less than their resolution.
        """
        return self.record.arrival_time - self.scheduled_time

    @property
    def is_short(self) -> bool:
        """Whether a request that didn't fail got fewer tokens than it asked for."""
        return self.error is None and self.record.num_output_tokens < self.num_asked_tokens

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``from_dict`` reads; nothing is rounded."""
        record, targets = self.record, self.record.targets
        return {
            "request_id": record.request_id,
            "client": record.client,
            "scheduled_time": self.scheduled_time,
            "arrival_time": record.arrival_time,
            "num_prompt_tokens": record.num_prompt_tokens,
            "num_asked_tokens": self.num_asked_tokens,
            "token_times": record.token_times.tolist(),
            "message_sizes": list(self.message_sizes),
            "counting": self.counting,
            "error": self.error,
            "num_server_prompt_tokens": self.num_server_prompt_tokens,
            "num_server_output_tokens": self.num_server_output_tokens,
            "ttft_target": targets.ttft,
            "tpot_target": targets.tpot,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Exchange:
        """The exchange that ``to_dict`` wrote; KeyError where something is missing."""
        record = RequestRecord(
            request_id=data["request_id"],
            arrival_time=data["arrival_time"],
            num_prompt_tokens=data["num_prompt_tokens"],
            token_times=np.array(data["token_times"], float),
            is_complete=data["error"] is None,
            targets=LatencyTargets(ttft=data["ttft_target"], tpot=data["tpot_target"]),
            client=data["client"],
        )
        return cls(
            record=record,
            scheduled_time=data["scheduled_time"],
            num_asked_tokens=data["num_asked_tokens"],
            message_sizes=tuple(data["message_sizes"]),
            counting=data["counting"],
            error=data["error"],
            num_server_prompt_tokens=data["num_server_prompt_tokens"],
            num_server_output_tokens=data["num_server_output_tokens"],
        )

"""How requests get to what is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastgen_jax.bench.exchange import COUNTED_IDS
from fastgen_jax.sim.arrival import Arrival


@dataclass(slots=True, kw_only=True)
class Reply:
    """What came back of one request; times on the transport's clock.

    Attributes:
        sent_time: just before it was sent.
        token_times: of each output token, in order; tokens of one message share its time.
        message_sizes: tokens of each message.
        counting: how these were found; see ``bench.exchange``.
        token_ids: the output, where it is known.
        error: why it failed; what came before stays.
        num_server_prompt_tokens, num_server_output_tokens: what a server says it counted.
    """

    sent_time: float
    token_times: list[float] = field(default_factory=list)
    message_sizes: list[int] = field(default_factory=list)
    counting: str = COUNTED_IDS
    token_ids: list[int] | None = None
    error: str | None = None
    num_server_prompt_tokens: int | None = None
    num_server_output_tokens: int | None = None

    def add(self, time: float, num_tokens: int) -> None:
        """A message with tokens came."""
        self.token_times += [time] * num_tokens
        self.message_sizes.append(num_tokens)


class Transport(Protocol):
    """Sends requests and notes, on the client's side, when tokens come."""

    async def send(self, arrival: Arrival) -> Reply:
        """Send it now and wait for its end; ``prompt_token_ids`` are real tokens.

        A request that fails is a reply with an error. Only what isn't the request's fault raises.
        """
        ...

    async def counters(self) -> Mapping[str, Any] | None:
        """What the engine has counted since it started; None where that can't be known."""
        ...

    def describe(self) -> dict[str, Any]:
        """What is measured, as data for the results file; without secrets."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...

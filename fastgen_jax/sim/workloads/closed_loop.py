"""Clients that send their next request when the last one has ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fastgen_jax.errors import ConfigError
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.workloads.mix import RequestMix


class ClosedLoop:
    """N clients with one request each under way, until so many were sent; as in the paper.

    Requests come from one list, whoever sends them: runs with other numbers of clients send the
    same ones in the same order.
    """

    def __init__(
        self,
        *,
        num_clients: int,
        num_requests: int,
        mix: RequestMix,
        seed: int = 42,
        start_spread: float = 0.0,
    ) -> None:
        """``start_spread``: clients begin at random times within so many seconds."""
        for name, value in (("num_clients", num_clients), ("num_requests", num_requests)):
            if value < 1:
                raise ConfigError("must be at least 1", field=name, value=value)
        self.num_clients = num_clients
        self.num_requests = num_requests
        self._mix = mix
        self._seed = seed
        self._start_spread = start_spread
        self._rng = np.random.default_rng(seed)
        self._num_sent = 0

    def start(self) -> Iterator[Arrival]:
        """Every client's first request."""
        self._rng = np.random.default_rng(self._seed)
        self._num_sent = 0
        starts = np.random.default_rng([self._seed, 1]).random(self.num_clients)
        for client, start in enumerate(sorted(starts.tolist())):
            if self._num_sent < self.num_requests:
                yield self._send(start * self._start_spread, client)

    def after(self, ended: Arrival, token_ids: Sequence[int], now: float) -> Arrival | None:
        """The client's next request, at once."""
        if self._num_sent >= self.num_requests:
            return None
        return self._send(now, ended.client)

    def _send(self, time: float, client: int | None) -> Arrival:
        number = self._num_sent
        self._num_sent += 1
        return self._mix.draw(number, self._rng, time=time, client=client)

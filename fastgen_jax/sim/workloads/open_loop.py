"""Requests that come at their own times, whatever has become of those before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from fastgen_jax.errors import ConfigError
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.workloads.mix import RequestMix


class OpenLoop:
    """So many requests per second, with gaps from a gamma distribution.

    ``variation`` is the gaps' deviation relative to their mean: 1 is a Poisson process, above 1 the
    requests come in bursts, and 0 is a metronome.
    """

    def __init__(
        self,
        *,
        rate: float,
        num_requests: int,
        mix: RequestMix,
        variation: float = 1.0,
        seed: int = 42,
    ) -> None:
        if not math.isfinite(rate) or rate <= 0:
            raise ConfigError("must be a number above 0", field="rate", value=rate)
        if not math.isfinite(variation) or variation < 0:
            raise ConfigError("must be a number from 0 on", field="variation", value=variation)
        self.rate = rate
        self.num_requests = num_requests
        self.variation = variation
        self._mix = mix
        self._seed = seed

    def start(self) -> Iterator[Arrival]:
        """All of them, drawn as they are asked for."""
        gaps, requests = (np.random.default_rng([self._seed, part]) for part in (0, 1))
        time = 0.0
        for number in range(self.num_requests):
            time += self._gap(gaps)
            yield self._mix.draw(number, requests, time=time)

    def after(self, ended: Arrival, token_ids: Sequence[int], now: float) -> Arrival | None:
        """Nothing: nobody waits for an answer."""
        return None

    def _gap(self, rng: np.random.Generator) -> float:
        if self.variation == 0.0:
            return 1.0 / self.rate
        shape = 1.0 / self.variation**2
        return float(rng.gamma(shape, 1.0 / (shape * self.rate)))

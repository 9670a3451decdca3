"""Conversations: each turn's prompt is all that was said before, and something new."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fastgen_jax.errors import ConfigError
from fastgen_jax.sim.arrival import Arrival
from fastgen_jax.sim.workloads.lengths import Lengths
from fastgen_jax.sim.workloads.mix import RequestMix


class Conversations:
    """People that come at random, and answer each answer after a while.

    Attributes:
        rate: new conversations per second, a Poisson process.
        num_conversations: how many.
        opening: the first turn.
        turns: turns of a conversation.
        answers: tokens that a person adds in each turn after the first.
        think_seconds: mean of the exponentially distributed time before that.
    """

    def __init__(
        self,
        *,
        rate: float,
        num_conversations: int,
        opening: RequestMix,
        turns: Lengths,
        answers: Lengths,
        think_seconds: float,
        seed: int = 42,
    ) -> None:
        if rate <= 0 or think_seconds < 0:
            raise ConfigError(
                "must be above 0, and from 0 on",
                field="rate, think_seconds",
                value=(rate, think_seconds),
            )
        self.rate = rate
        self.num_conversations = num_conversations
        self.opening = opening
        self.turns = turns
        self.answers = answers
        self.think_seconds = think_seconds
        self._seed = seed
        self._rngs: dict[int, np.random.Generator] = {}
        self._turns_left: dict[int, int] = {}

    def start(self) -> Iterator[Arrival]:
        """The first turns."""
        self._rngs, self._turns_left = {}, {}
        gaps = np.random.default_rng([self._seed, 0])
        time = 0.0
        for number in range(self.num_conversations):
            time += float(gaps.exponential(1.0 / self.rate))
            # A conversation's course doesn't depend on how the others went.
            rng = self._rngs[number] = np.random.default_rng([self._seed, 1, number])
            self._turns_left[number] = self.turns.draw(rng) - 1
            yield self.opening.draw(number, rng, time=time, client=number)

    def after(self, ended: Arrival, token_ids: Sequence[int], now: float) -> Arrival | None:
        """The conversation's next turn; None at its end."""
        number = ended.client
        if number is None or not self._turns_left[number]:
            return None
        self._turns_left[number] -= 1
        rng = self._rngs[number]
        time = now + float(rng.exponential(self.think_seconds))
        turn = self.opening.draw(number, rng, time=time, client=number)
        said = tuple(token_ids) + (-number - 1,) * self.answers.draw(rng)
        return Arrival(
            time=time,
            prompt_token_ids=said,
            num_output_tokens=turn.num_output_tokens,
            max_tokens=turn.max_tokens,
            targets=turn.targets,
            client=number,
        )

"""A fake engine whose steps take virtual time, with its history."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastgen_jax.batching import StepResults, StepShape
from fastgen_jax.observe.step_history import StepHistory
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.sim.clock import VirtualClock
from fastgen_jax.step_executor import PendingStep
from fastgen_jax.testing import FakeEngine, fake_engine


class SlowStep:
    """A launch whose results take their time."""

    def __init__(self, pending: PendingStep, clock: VirtualClock, seconds: float) -> None:
        self._pending = pending
        self._clock = clock
        self._seconds = seconds

    def read(self) -> StepResults:
        self._clock.now += self._seconds
        return self._pending.read()


class Stepped:
    """An engine whose steps take a tenth of a second for each place of their shape."""

    def __init__(self, *, max_steps: int = 1000, **sizes: Any) -> None:
        self.clock = VirtualClock()
        self.history = StepHistory(max_steps)
        self.engine: FakeEngine = fake_engine(
            clock=self.clock, observers=[self.history], next_token=lambda history: 7, **sizes
        )
        launch = self.engine.executor.launch

        def slowly(shape: StepShape, packed: np.ndarray) -> SlowStep:
            return SlowStep(launch(shape, packed), self.clock, shape.num_tokens / 10)

        self.engine.executor.launch = slowly

    def submit(self, prompt: int | Sequence[int], max_tokens: int, **params: Any) -> str:
        """A request of so many tokens, or of these; its id."""
        ids = [number % 200 for number in range(prompt)] if isinstance(prompt, int) else prompt
        params.setdefault("ignore_eos", True)
        (first, *_) = self.engine.submit(ids, SamplingParams(max_tokens=max_tokens, **params))
        return first.request.request_id

    def step(self, count: int = 1) -> None:
        """Steps, one after the other."""
        for _ in range(count):
            self.engine.step()

    def run(self) -> None:
        """Till nothing is left."""
        while self.engine.has_work:
            self.step()


def random_run(seed: int, *, max_steps: int = 1000, **sizes: Any) -> Stepped:
    """Traffic with waits, preemptions, aborts and several completions."""
    draw = random.Random(seed)
    made = Stepped(max_steps=max_steps, num_blocks=draw.randint(17, 40), **sizes)
    for _ in range(25):
        prompt = [draw.randrange(3) for _ in range(draw.randrange(1, 30))]
        n = draw.choice([1, 1, 1, 2])
        (completion, *_) = made.engine.submit(
            prompt, SamplingParams(max_tokens=draw.randrange(1, 30), n=n, ignore_eos=True)
        )
        if draw.random() < 0.1:
            made.engine.abort(completion.request)
        for _ in range(draw.randrange(4)):
            if made.engine.has_work:
                made.step()
    made.run()
    return made

"""Timing single steps of an engine by the number of their tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from fastgen_jax.batching import StepShape
from fastgen_jax.bench.live.flops import prefill_flops
from fastgen_jax.bench.results import TimedStep
from fastgen_jax.config import EngineConfig
from fastgen_jax.llm import LLM
from fastgen_jax.observe.observer import Observer
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.scheduling.plan import StepPlan

_ONE_TOKEN = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)


class StepTimer:
    """An engine of its own, which is given prompts that make exactly one step.

    The time goes from before the step is planned until its tokens are read, with nothing else
    under way: planning, packing and launching, which a busy engine hides behind the step before,
    are in it. The prompts are new each time and attend to themselves alone.
    """

    def __init__(
        self,
        model: str,
        config: EngineConfig,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._launches = _Launches()
        self._llm = LLM(model, config=config, observers=[self._launches])
        self._clock = clock
        self._rng = np.random.default_rng(0)

    @property
    def token_budget(self) -> int:
        """Most tokens of a step."""
        return self._llm.engine.scheduler.config.token_budget

    @property
    def max_rows(self) -> int:
        """Most prompts of a step."""
        return self._llm.engine.scheduler.config.max_step_rows

    def time(self, cells: Sequence[tuple[int, int]], repeats: int) -> list[TimedStep]:
        """Steps of so many tokens and prompts; each is run once, then they take turns."""
        seconds: dict[tuple[int, int], list[float]] = {cell: [] for cell in cells}
        shapes: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}
        with tqdm(total=(repeats + 1) * len(cells), unit="step", leave=False, disable=None) as bar:
            for turn in range(repeats + 1):
                # Every other turn backwards, so that none always follows the same one.
                for cell in cells if turn % 2 else reversed(cells):
                    taken = self._seconds(*cell)
                    shapes[cell] = tuple((s.num_tokens, s.num_rows) for s in self._launches.shapes)
                    if turn:
                        seconds[cell].append(taken)
                    bar.update()
        return [self._timed(cell, shapes[cell], seconds[cell]) for cell in cells]

    def close(self) -> None:
        """Free the engine's memory."""
        self._llm.close()

    def _seconds(self, num_tokens: int, num_rows: int) -> float:
        engine = self._llm.engine
        vocab_size = self._llm.model_config.vocab_size
        for length in _lengths(num_tokens, num_rows):
            engine.submit(self._rng.integers(vocab_size, size=length).tolist(), _ONE_TOKEN)
        self._launches.shapes.clear()
        start = self._clock()
        while engine.has_work:
            engine.step()
        return self._clock() - start

    def _timed(
        self, cell: tuple[int, int], shapes: tuple[tuple[int, int], ...], seconds: list[float]
    ) -> TimedStep:
        num_tokens, num_rows = cell
        return TimedStep(
            num_tokens=num_tokens,
            num_rows=num_rows,
            shapes=shapes,
            flops=prefill_flops(self._llm.model_config, _lengths(num_tokens, num_rows)),
            seconds=tuple(seconds),
        )


class _Launches(Observer):
    """The compiled shapes of what was launched."""

    def __init__(self) -> None:
        self.shapes: list[StepShape] = []

    def launched(self, plan: StepPlan, shape: StepShape) -> None:
        self.shapes.append(shape)


def _lengths(num_tokens: int, num_rows: int) -> list[int]:
    """Lengths of so many prompts, equal but for one token."""
    short, longer = divmod(num_tokens, num_rows)
    return [short + 1] * longer + [short] * (num_rows - longer)

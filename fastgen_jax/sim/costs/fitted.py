"""Step times fitted to a recorded run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastgen_jax.errors import ConfigError
from fastgen_jax.sim.load import StepLoad

_FEATURES = ("per_step", "per_token", "per_row", "per_key", "per_pair")


class RecordedStep(NamedTuple):
    """A step that ran, and how long it took."""

    load: StepLoad
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedCost:
    """A step's time as a sum: none of the terms is below 0.

    Attributes:
        per_step, per_token, per_row, per_key, per_pair: seconds.
        num_steps: that it was fitted to.
        median_error: of the fit, relative to the recorded time; half of the steps are closer.
        p95_error: 95 % of the steps are closer.
    """

    per_step: float
    per_token: float
    per_row: float
    per_key: float
    per_pair: float
    num_steps: int
    median_error: float
    p95_error: float

    @classmethod
    def fit(cls, steps: Sequence[RecordedStep]) -> FittedCost:
        """The sum with the least squared error, each step's relative to its own time.

        Raises:
            ConfigError: fewer steps than terms, or one that took no time.
        """
        times = np.array([step.seconds for step in steps])
        if len(steps) < len(_FEATURES) or not np.all(times > 0):
            raise ConfigError(
                f"must be at least {len(_FEATURES)} steps, each longer than 0 seconds",
                field="steps",
                value=len(steps),
            )
        features = np.array([_features(step.load) for step in steps], float)
        terms = _nonnegative(features / times[:, None], np.ones(len(times)))
        errors = np.abs(features @ terms / times - 1.0)
        return cls(
            **dict(zip(_FEATURES, terms.tolist(), strict=True)),
            num_steps=len(steps),
            median_error=float(np.median(errors)),
            p95_error=float(np.percentile(errors, 95)),
        )

    def seconds(self, load: StepLoad) -> float:
        """The sum."""
        return (
            self.per_step
            + self.per_token * load.num_tokens
            + self.per_row * load.num_rows
            + self.per_key * load.num_keys
            + self.per_pair * load.num_pairs
        )


def write_steps(path: str | Path, steps: Iterable[RecordedStep]) -> None:
    """Write recorded steps, a line of JSON each."""
    lines = (json.dumps(load._asdict() | {"seconds": seconds}) for load, seconds in steps)
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def read_steps(path: str | Path) -> list[RecordedStep]:
    """Recorded steps from what ``write_steps`` wrote.

    Raises:
        ConfigError: the file can't be read, or a line is no step; names the line.
    """
    steps: list[RecordedStep] = []
    try:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            seconds = float(entry.pop("seconds"))
            steps.append(RecordedStep(StepLoad(**entry), seconds))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"line {len(steps) + 1}: {error}", field="steps", value=str(path)
        ) from error
    return steps


def _features(load: StepLoad) -> tuple[int, ...]:
    return 1, load.num_tokens, load.num_rows, load.num_keys, load.num_pairs


def _nonnegative(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares without terms below 0: of all choices of terms, the best that has none.

    Five terms make 31 choices, so trying all is simplest.
    """
    scale = np.abs(features).max(axis=0)
    scale[scale == 0] = 1.0
    scaled = features / scale
    count = features.shape[1]
    best, best_error = np.zeros(count), np.inf
    for chosen in range(1, 2**count):
        columns = [index for index in range(count) if chosen >> index & 1]
        terms, *_ = np.linalg.lstsq(scaled[:, columns], target)
        if np.any(terms < 0):
            continue
        error = float(np.square(scaled[:, columns] @ terms - target).sum())
        if error < best_error * (1 - 1e-9):
            best = np.zeros(count)
            best[columns] = terms
            best_error = error
    return best / scale

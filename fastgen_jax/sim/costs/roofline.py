"""Step times from ``fastgen plan``: the compiled shapes of a GPU that needn't be there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgen_jax.errors import ConfigError
from fastgen_jax.sim.load import StepLoad


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShape:
    """One compiled step: what it costs whatever it holds, padding included.

    Attributes:
        num_tokens, num_rows: its size.
        fixed_seconds: of all its kernels but attention.
    """

    num_tokens: int
    num_rows: int
    fixed_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineCost:
    """The estimate of ``fastgen plan`` for any load: the smallest shape that holds it.

    Attention grows with the keys that the rows read and with the pairs it multiplies; everything
    else is the shape's. An estimate, as the plan itself is.

    Attributes:
        shapes: ascending in tokens.
        per_key, per_pair: seconds of attention in all layers.
        per_step: seconds added to each step: host work that isn't hidden.
    """

    shapes: tuple[PlannedShape, ...]
    per_key: float
    per_pair: float
    per_step: float = 0.0

    @classmethod
    def from_json(cls, path: str | Path, *, per_step: float = 0.0) -> RooflineCost:
        """From what ``fastgen plan --json`` wrote.

        Raises:
            ConfigError: the file can't be read, or holds no plan.
        """
        try:
            plan = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls.from_plan(plan, per_step=per_step)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"holds no plan: {type(error).__name__} {error}",
                field="plan",
                value=str(path),
                remedy="give the file that fastgen plan --json wrote",
            ) from error

    @classmethod
    def from_plan(cls, plan: Mapping[str, Any], *, per_step: float = 0.0) -> RooflineCost:
        """From the plan's JSON as a dict; KeyError where it isn't one."""
        steps: Sequence[Mapping[str, Any]] = plan["steps"]
        attention = [_attention(step) for step in steps]
        per_key, per_pair = _per_key_and_pair(attention)
        shapes = [
            PlannedShape(
                num_tokens=step["num_tokens"],
                num_rows=step["num_rows"],
                fixed_seconds=step["estimate"]["seconds"] - found.seconds,
            )
            for step, found in zip(steps, attention, strict=True)
        ]
        return cls(
            shapes=tuple(sorted(shapes, key=lambda shape: shape.num_tokens)),
            per_key=per_key,
            per_pair=per_pair,
            per_step=per_step,
        )

    def seconds(self, load: StepLoad) -> float:
        """The smallest shape's time, with this load's attention.

        Raises:
            ConfigError: no shape holds the load.
        """
        for shape in self.shapes:
            if load.num_tokens <= shape.num_tokens and load.num_rows <= shape.num_rows:
                attention = self.per_key * load.num_keys + self.per_pair * load.num_pairs
                return self.per_step + shape.fixed_seconds + attention
        raise ConfigError(
            f"holds a step of {load.num_tokens} tokens in {load.num_rows} rows nowhere",
            field="shapes",
            value=[(shape.num_tokens, shape.num_rows) for shape in self.shapes],
            remedy="plan larger step shapes, or lower the scheduler's token_budget and rows",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    """What a planned step's attention was imagined to do, and its time."""

    num_keys: int
    num_pairs: int
    seconds: float


def _attention(step: Mapping[str, Any]) -> _Attention:
    """The plan's load: decodes of ``context`` keys, and a chunk that ends at ``context`` too."""
    estimate = step["estimate"]
    load = estimate["load"]
    decodes, chunk, context = load["num_decodes"], load["chunk"], load["context"]
    kinds = dict(estimate["seconds_by_kind"])
    return _Attention(
        num_keys=decodes * context + (context if chunk else 0),
        num_pairs=decodes * context + chunk * (context - chunk) + chunk * (chunk + 1) // 2,
        seconds=float(kinds.get("attention", 0.0)),
    )


def _per_key_and_pair(steps: Sequence[_Attention]) -> tuple[float, float]:
    """Seconds per key and per pair beyond one for each key, by least squares; neither below 0."""
    keys = [step.num_keys for step in steps]
    # A decode's pairs are its keys: only a chunk's further ones tell the two apart.
    extra = [step.num_pairs - step.num_keys for step in steps]
    times = [step.seconds for step in steps]
    kk = sum(k * k for k in keys)
    ee = sum(e * e for e in extra)
    ke = sum(k * e for k, e in zip(keys, extra, strict=True))
    kt = sum(k * t for k, t in zip(keys, times, strict=True))
    et = sum(e * t for e, t in zip(extra, times, strict=True))
    determinant = kk * ee - ke * ke
    per_extra = (kk * et - ke * kt) / determinant if determinant > 0 else 0.0
    per_extra = max(per_extra, 0.0)
    per_key = max((kt - per_extra * ke) / kk, 0.0) if kk else 0.0
    # seconds = per_key * keys + per_extra * (pairs - keys)
    return max(per_key - per_extra, 0.0), per_extra

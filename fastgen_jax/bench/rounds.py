"""Points that were measured several times alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastgen_jax.bench.results import Point
from fastgen_jax.bench.spread import Spread

LOADS = ("clients", "rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """The rounds of one point, in order."""

    parameters: Mapping[str, Any]
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        """Its parameters in words."""
        return ", ".join(describe(name, value) for name, value in self.parameters.items())

    @property
    def load(self) -> float | None:
        """Its number of clients, or its rate; None where it has neither."""
        return next((self.parameters[name] for name in LOADS if name in self.parameters), None)

    @property
    def setting(self) -> str:
        """In words, what sets it apart besides the load; "" for nothing."""
        others = ((n, v) for n, v in self.parameters.items() if n not in LOADS)
        return ", ".join(describe(name, value) for name, value in others)

    def spread(self, value: Callable[[Point], float]) -> Spread:
        """A number's median, lowest and highest over the rounds."""
        return Spread.of([value(point) for point in self.points])


def group_rounds(points: Sequence[Point]) -> list[Rounds]:
    """The points by their parameters, in the order of the first round."""
    found: dict[tuple[tuple[str, Any], ...], list[Point]] = {}
    for point in points:
        found.setdefault(tuple(point.parameters.items()), []).append(point)
    return [Rounds(parameters=dict(key), points=tuple(group)) for key, group in found.items()]


def describe(name: str, value: object) -> str:
    """A parameter in words."""
    if name == "clients":
        return f"{value} client" + ("s" if value != 1 else "")
    if name == "requests":
        return f"{value} at once"
    if name == "rate":
        return f"{value:g}/s"
    if name == "tensor_parallel_size":
        return f"{value} device" + ("s" if value != 1 else "")
    return f"{value}"

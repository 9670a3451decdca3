"""The most multiplications and additions a second that this machine's libraries reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import time_in_turns
from fastgen_jax.bench.spread import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmRate:
    """FLOPs per second of a large square product, by who computed it; 2 FLOPs a multiply-add."""

    size: int
    flops_per_second: dict[str, Spread]

    @property
    def best(self) -> str:
        """Whose median is the highest."""
        return max(self.flops_per_second, key=lambda name: self.flops_per_second[name].median)

    @property
    def rate(self) -> float:
        """The best median, in FLOPs per second."""
        return self.flops_per_second[self.best].median


def measure_gemm(*, size: int = 2048, repeats: int = 7) -> GemmRate:
    """A product of two square matrices by numpy in float32, and by XLA in float32 and bfloat16."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((size, size), np.float32) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {"numpy float32": lambda: a @ b}
    for dtype in ("float32", "bfloat16"):
        calls[f"XLA {dtype}"] = _xla_product(jnp.asarray(a, dtype), jnp.asarray(b, dtype))
    flops = 2.0 * size**3
    rates = {
        name: Spread(
            median=flops / one.median,
            low=flops / one.high,
            high=flops / one.low,
            count=one.count,
        )
        for name, one in time_in_turns(calls, repeats).items()
    }
    return GemmRate(size=size, flops_per_second=rates)


def _xla_product(a: jax.Array, b: jax.Array) -> Callable[[], object]:
    run = jax.jit(jnp.dot).lower(a, b).compile()
    return lambda: jax.block_until_ready(run(a, b))

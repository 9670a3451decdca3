"""From how many rows on XLA's products beat the native kernel's: measured once on a machine.

On a processor with matrix instructions that the native kernel doesn't use, XLA can be faster for
many rows even though it has to unpack the weights in every step. Nobody can know it beforehand, so
a layer's widest product is timed both ways, and the winner is kept on disk.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp

from fastgen_jax.models.packed import PackedWeights
from fastgen_jax.runtime.program_cache import cpu_flags
from pallas_kernels.linear import LinearConfig, LinearNative, LinearXla, PackedMatrix, linear
from pallas_kernels.native import source_digest

# Fewer rows are bound by reading the weights, which unpacking would have to do as well.
_FEWEST_ROWS = 64
_ROUNDS = 5
# XLA must win clearly: its step also computes the rows that pad it.
_NEEDED_SPEEDUP = 1.25

Timer = Callable[[LinearConfig, PackedMatrix, int, str], list[float]]


def fastest_linear(
    weights: PackedWeights,
    num_tokens: int,
    *,
    num_threads: int,
    cache_dir: Path | None,
    seconds: Timer | None = None,
) -> LinearConfig:
    """How a step of this many tokens multiplies fastest here; measures where nobody has.

    Args:
        weights: abstract or not; their own choice stands unless it is the native kernel.
        num_tokens: rows of the products.
        num_threads: of the native kernels, part of what the measurement is kept under.
        cache_dir: where it is kept; None measures at every start.
        seconds: times one product; None runs it on this machine.
    """
    if not isinstance(weights.linear, LinearNative) or num_tokens < _FEWEST_ROWS:
        return weights.linear
    matrix = weights.matrices["up"]
    rival = LinearXla(rounds_rows=weights.linear.rounds_rows)
    key = _key(weights.linear, matrix, num_tokens, weights.dtype, num_threads)
    path = None if cache_dir is None else cache_dir / "crossover.json"
    known = _read(path)
    if key not in known:
        native, xla = (
            min((seconds or _seconds)(config, matrix, num_tokens, weights.dtype))
            for config in (weights.linear, rival)
        )
        known[key] = xla * _NEEDED_SPEEDUP < native
        _write(path, known)
    return rival if known[key] else weights.linear


def _seconds(
    config: LinearConfig, matrix: PackedMatrix, num_tokens: int, dtype: str
) -> list[float]:
    one_layer = PackedMatrix.abstract(
        matrix.format,
        num_layers=1,
        in_features=matrix.in_features,
        out_features=matrix.out_features,
    )
    weights = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), one_layer)
    x = jnp.ones((num_tokens, matrix.in_features), dtype)

    def product(x: jax.Array, weights: PackedMatrix) -> jax.Array:
        return linear(x, (weights,), layer=0, num_tokens=num_tokens, config=config)[0]

    run = jax.jit(product).lower(x, weights).compile()
    jax.block_until_ready(run(x, weights))
    seconds: list[float] = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(run(x, weights))
        seconds.append(time.perf_counter() - start)
    return seconds


def _key(
    config: LinearConfig, matrix: PackedMatrix, num_tokens: int, dtype: str, num_threads: int
) -> str:
    sizes = (matrix.format, matrix.in_features, matrix.out_features)
    parts = (config, *sizes, num_tokens, dtype, num_threads)
    machine = (version("jaxlib"), source_digest(), cpu_flags())
    return hashlib.sha256(repr((parts, machine)).encode()).hexdigest()


def _read(path: Path | None) -> dict[str, bool]:
    try:
        known = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there yet, or damaged: it only costs a measurement
        return {}
    return known if isinstance(known, dict) else {}


def _write(path: Path | None, known: dict[str, bool]) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{time.monotonic_ns()}")
    fresh.write_text(json.dumps(known, indent=1), encoding="utf-8")
    fresh.replace(path)

"""Measures the best sizes of the kernels on the GPU at hand: ``--help``.

The sizes go into a data file for the kind of GPU, from where ``select_config`` takes them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from pallas_kernels.ragged_paged_attention.api import ragged_paged_attention
from pallas_kernels.ragged_paged_attention.arg_specs import (
    AttentionArguments,
    AttentionSpec,
    find_specs,
)
from pallas_kernels.ragged_paged_attention.batch import RaggedBatch
from pallas_kernels.ragged_paged_attention.config import (
    AttentionConfig,
    HopperConfig,
    KernelConfig,
    ReferenceConfig,
    SplitRule,
)
from pallas_kernels.ragged_paged_attention.heuristics import shared_bytes
from pallas_kernels.ragged_paged_attention.shape import AttentionShape
from pallas_kernels.ragged_paged_attention.tuned import (
    TunedEntry,
    TunedFile,
    read_tuned,
    tuned_path,
)
from pallas_kernels.ragged_paged_attention.work import plan_work
from pallas_kernels.target import Target, target_of

OPERATIONS = ("ragged_paged_attention",)

# Weights and results have 8 bits, each rounded by up to 2^-9; results are means of unit normals.
TOLERANCE = 3e-2
# A candidate must beat the heuristic by more than a repeated measurement differs.
LEAST_GAIN = 1.02
_CHAINED_CALLS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """A call's arrays, and the batch that its work is planned from.

    Attributes:
        arguments: ``work`` is planned for the reference.
        batch: rows of mixed lengths.
        num_tokens: tokens that belong to a row; those beyond them are undefined.
    """

    arguments: AttentionArguments
    batch: RaggedBatch
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Sizes that were tried.

    Attributes:
        config: the sizes.
        seconds: median of one call; infinite where they weren't measured.
        obstacle: why they weren't: the compiler's words, or a wrong result.
    """

    config: AttentionConfig
    seconds: float
    obstacle: str | None = None


def candidates(
    shape: AttentionShape, target: Target, heuristic: KernelConfig
) -> tuple[KernelConfig, ...]:
    """Sizes worth a try, the heuristic's first; all of its implementation, all different.

    Tiles are varied under the heuristic's splits, and splits under its tiles: not every pair is
    tried. For Hopper those that fit the shared memory; what of Triton's doesn't, its compiler
    refuses.
    """
    longest = shape.pages_per_row * shape.page_size
    found: list[KernelConfig] = [heuristic]
    for keys in (512, 1024, 2048):
        most = max(1, min(SplitRule().max_splits, longest // keys))
        splits = replace(heuristic.splits, keys=keys, max_splits=most)
        found.append(replace(heuristic, splits=splits))
    if isinstance(heuristic, HopperConfig):
        for block_keys, streams, stages in itertools.product((32, 64, 128), (1, 2), (2, 3, 4, 6)):
            config = replace(heuristic, block_keys=block_keys, streams=streams, stages=stages)
            if shared_bytes(shape, config) <= target.shared_memory:
                found.append(config)
    else:
        for block_keys, tile_rows, num_warps, num_stages in itertools.product(
            (32, 64, 128), (32, 64, 128), (4, 8), (2, 3)
        ):
            found.append(
                replace(
                    heuristic,
                    block_keys=block_keys,
                    tile_rows=tile_rows,
                    num_warps=num_warps,
                    num_stages=num_stages,
                )
            )
    fitting = (
        config
        for config in found
        if config.block_keys % shape.page_size == 0 or shape.page_size % config.block_keys == 0
    )
    return tuple(dict.fromkeys(fitting))


def make_inputs(spec: AttentionSpec, *, mean_keys: int, seed: int = 0) -> Inputs:
    """Random arrays for a spec: single queries, and two chunks where the step has more tokens.

    Rows have up to twice ``mean_keys`` keys, on pages of their own in random order.
    """
    shape = spec.shape
    rng = np.random.default_rng(seed)
    queries = np.ones(shape.num_rows, np.int32)
    if shape.num_tokens > shape.num_rows:
        half = (shape.num_tokens - (shape.num_rows - 2)) // 2
        queries[-2:] = half, shape.num_tokens - (shape.num_rows - 2) - half
    most = shape.pages_per_row * shape.page_size
    keys = rng.integers(1, 2 * mean_keys, shape.num_rows)
    keys = np.minimum(np.maximum(keys, queries), most).astype(np.int32)
    pages = -(-keys // shape.page_size)
    tables = np.zeros((shape.num_rows, shape.pages_per_row), np.int32)
    order = rng.permutation(int(pages.sum())) + 1  # page 0 is the null page
    ends = np.cumsum(pages)
    for row, (count, end) in enumerate(zip(pages, ends, strict=True)):
        tables[row, :count] = order[end - count : end]
    batch = RaggedBatch(
        query_start=jnp.asarray(np.cumsum(queries) - queries, jnp.int32),
        query_len=jnp.asarray(queries),
        kv_len=jnp.asarray(keys),
        block_tables=jnp.asarray(tables),
        num_single_rows=jnp.int32((queries == 1).sum()),
        num_rows=jnp.int32(shape.num_rows),
    )

    def normal(key: int, sizes: tuple[int, ...], dtype: str) -> jax.Array:
        values = jax.random.normal(jax.random.key(seed + key), sizes, jnp.bfloat16)
        return values.astype(jnp.dtype(dtype))

    pool = (int(ends[-1]) + 1, shape.num_kv_heads, shape.page_size, shape.head_dim)
    scales = jnp.full(shape.num_kv_heads, 0.5, jnp.float32) if spec.has_scales else None
    arguments = AttentionArguments(
        q=normal(0, (shape.num_tokens, shape.num_heads, shape.head_dim), shape.dtype),
        k_pages=normal(1, pool, shape.kv_dtype),
        v_pages=normal(2, pool, shape.kv_dtype),
        work=plan_work(batch, shape=shape, config=ReferenceConfig(), window=spec.options.window),
        sinks=jnp.zeros(shape.num_heads, jnp.float32) if spec.has_sinks else None,
        k_scales=scales,
        v_scales=scales,
    )
    return Inputs(arguments=arguments, batch=batch, num_tokens=int(queries.sum()))


def tune(
    spec: AttentionSpec,
    configs: Sequence[AttentionConfig],
    inputs: Inputs,
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Candidate, ...]:
    """Every configuration checked against the reference and timed, in the order given.

    A measurement is a chain of calls, each with the result of the one before as its queries, so
    that launches cost the host nothing. The rounds go through all configurations in turn, so that
    a clock that drifts meets them alike.

    Args:
        spec: the call.
        configs: what to try.
        inputs: of ``make_inputs``.
        rounds: measurements of each, after one that isn't counted.
        clock: seconds.
        progress: called once for each configuration and once for each round.
    """
    wanted = _attend(spec, inputs, ReferenceConfig())(1)
    chains: dict[AttentionConfig, Callable[[int], jax.Array]] = {}
    obstacles: dict[AttentionConfig, str] = {}
    for config in configs:
        chain = _attend(spec, inputs, config)
        try:
            obstacle = _difference(chain(1), wanted, inputs)
            if obstacle is None:
                chain(_CHAINED_CALLS)
                chains[config] = chain
            else:
                obstacles[config] = obstacle
        except Exception as error:  # a compiler's, of any kind: the configuration is left out
            obstacles[config] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        progress()
    times: dict[AttentionConfig, list[float]] = {config: [] for config in chains}
    for _ in range(rounds):
        for config, chain in chains.items():
            start = clock()
            chain(_CHAINED_CALLS)
            times[config].append((clock() - start) / _CHAINED_CALLS)
        progress()
    return tuple(
        Candidate(
            config=config,
            seconds=statistics.median(times[config]) if config in times else float("inf"),
            obstacle=obstacles.get(config),
        )
        for config in configs
    )


def best(tried: Sequence[Candidate]) -> Candidate:
    """The fastest; the first, which is the heuristic's, unless another gains enough on it."""
    fastest = min(tried, key=lambda candidate: candidate.seconds)
    first = tried[0]
    return fastest if fastest.seconds * LEAST_GAIN < first.seconds else first


def _attend(
    spec: AttentionSpec, inputs: Inputs, config: AttentionConfig
) -> Callable[[int], jax.Array]:
    """A function of the number of chained calls, compiled once for any number."""
    given = inputs.arguments

    @jax.jit
    def chain(
        calls: jax.Array, q: jax.Array, given: AttentionArguments, batch: RaggedBatch
    ) -> jax.Array:
        work = plan_work(batch, shape=spec.shape, config=config, window=spec.options.window)

        def call(_: jax.Array | int, q: jax.Array) -> jax.Array:
            return ragged_paged_attention(
                q,
                given.k_pages,
                given.v_pages,
                work,
                options=spec.options,
                config=config,
                sinks=given.sinks,
                k_scales=given.k_scales,
                v_scales=given.v_scales,
            )

        return lax.fori_loop(0, calls, call, q)

    return lambda calls: chain(jnp.int32(calls), given.q, given, inputs.batch).block_until_ready()


def _difference(seen: jax.Array, wanted: jax.Array, inputs: Inputs) -> str | None:
    """How a result is wrong; None where it isn't."""
    both = (np.asarray(array[: inputs.num_tokens], np.float32) for array in (seen, wanted))
    difference = float(np.max(np.abs(np.subtract(*both))))
    if difference <= TOLERANCE:  # False for NaN
        return None
    return f"differs from the reference by {difference:.3g}, {TOLERANCE} is allowed"


def tune_all(
    specs: Sequence[AttentionSpec], target: Target, output: Path, *, mean_keys: int, rounds: int
) -> None:
    """Tune every spec that a kernel serves; the file is written after each."""
    versions = {name: version(name) for name in ("jax", "jaxlib")}
    file = TunedFile(device_kind=target.kind, versions=versions, entries=())
    if output.is_file():
        file = replace(read_tuned(output), versions=versions)
    for spec in specs:
        heuristic = spec.config(replace(target, kind=""))  # a kind that nobody has tuned
        if not isinstance(heuristic, KernelConfig):
            print(f"{spec.name}: no kernel serves it on {target.kind}")
            continue
        configs = candidates(spec.shape, target, heuristic)
        inputs = make_inputs(spec, mean_keys=mean_keys)
        with tqdm(total=len(configs) + rounds, desc=spec.name, unit="step") as bar:
            tried = tune(spec, configs, inputs, rounds=rounds, progress=bar.update)
        for candidate in tried:
            if candidate.obstacle is not None:
                print(f"{spec.name}: left out {candidate.config}: {candidate.obstacle}")
        if all(candidate.obstacle is not None for candidate in tried):
            print(f"{spec.name}: nothing could be measured", file=sys.stderr)
            continue
        chosen = best(tried)
        assert isinstance(chosen.config, KernelConfig)
        file = file.with_entry(
            TunedEntry(
                shape=spec.shape,
                config=chosen.config,
                seconds=chosen.seconds,
                heuristic_seconds=tried[0].seconds,
            )
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        file.save(output)
        print(
            f"{spec.name}: {chosen.seconds * 1e6:.1f} µs, "
            f"heuristic {tried[0].seconds * 1e6:.1f} µs, {chosen.config}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 where there is no GPU or an argument is no good."""
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.autotune", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--operation", choices=OPERATIONS, default=OPERATIONS[0])
    parser.add_argument("--spec", nargs="+", default=[], help="parts of names; all without")
    parser.add_argument("--output", type=Path, help="file; without, the one that is looked up")
    parser.add_argument("--mean-keys", type=int, default=1024, help="keys of a row, on average")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each candidate")
    given = parser.parse_args(arguments)
    device = jax.devices()[0]
    if device.platform == "cpu":
        print(
            "autotune: jax finds no GPU here, and sizes are measured, not computed; "
            "run it on the GPU that is to be tuned (without it the heuristics choose)",
            file=sys.stderr,
        )
        return 2
    target = target_of(device)
    try:
        specs = find_specs(tuple(given.spec))
        tune_all(
            specs,
            target,
            given.output or tuned_path(target.kind),
            mean_keys=given.mean_keys,
            rounds=given.rounds,
        )
    except ValueError as error:
        print(f"autotune: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

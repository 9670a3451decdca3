"""The prices in ``paper_engines``: fitted to the ends of the paper's curves, and to nothing else.

Three numbers for each engine, to four mean latencies: 1 and 32 clients, 60 and 128 output tokens.
Each try simulates these four; the sum of squared logarithms of the ratios is made small. The stored
prices were found with 256 (FastGen) and 160 (vLLM) requests, in 70 and 45 tries. Prints, writes
nothing.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import astuple

import numpy as np
from scipy.optimize import minimize

from benchmarks.paper_engines import ENGINES, OwnCosts, PaperEngine, simulator
from benchmarks.paper_figures import CURVES, CurvePoint
from benchmarks.paper_simulation import SETUPS, workload
from fastgen_jax.bench.summary import summarize

_FIRST_STEPS = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.3, 0], [0, 0, 0.3]])


def ends(name: str) -> list[tuple[tuple[int, int], CurvePoint]]:
    """The first and the last point of the engine's two curves."""
    return [(setup, CURVES[setup, name][end]) for setup in SETUPS for end in (0, -1)]


def latency(
    engine: PaperEngine, costs: OwnCosts, setup: tuple[int, int], clients: int, num_requests: int
) -> float:
    """Mean latency of a simulated point."""
    result = simulator(engine, costs).run(workload(setup, clients, num_requests))
    found = summarize(result.records).latency
    assert found is not None
    return found.mean


def fit(name: str, *, start: OwnCosts, num_requests: int, tries: int) -> tuple[OwnCosts, float]:
    """The engine's prices, and what is left of the error."""
    engine = ENGINES[name]

    def error(logarithms: np.ndarray) -> float:
        costs = costs_of(logarithms)
        return sum(
            math.log(latency(engine, costs, setup, point.clients, num_requests) / point.latency)
            ** 2
            for setup, point in ends(name)
        )

    first = np.log(astuple(start))
    found = minimize(
        error,
        first,
        method="Nelder-Mead",
        options={"maxfev": tries, "initial_simplex": first + _FIRST_STEPS},
    )
    return costs_of(found.x), float(found.fun)


def costs_of(logarithms: np.ndarray) -> OwnCosts:
    """Prices from their logarithms, so that none is negative."""
    factor, per_step, per_row = np.exp(logarithms).tolist()
    return OwnCosts(factor=factor, per_step=per_step, per_row=per_row)


def main() -> None:
    """Fit both engines, from the same start."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--tries", type=int, default=70)
    arguments = parser.parse_args()
    start = OwnCosts(factor=1.5, per_step=0.02, per_row=0.0015)
    for name in ENGINES:
        costs, left = fit(name, start=start, num_requests=arguments.requests, tries=arguments.tries)
        print(f"{name}: {costs}, error {left:.2g}", flush=True)


if __name__ == "__main__":
    main()

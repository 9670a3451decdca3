"""The FastGen paper's comparison with vLLM, simulated: which of it is the scheduling?

Llama-2-70B on four A100, 1 to 32 clients in a closed loop, prompts of 2600 tokens and outputs of 60
or 128, lengths normal with deviations of 30 % (prompts at most 4000, as the paper's scripts cut
them), 512 requests. The scheduler is the engine's own, under a virtual clock. Three settings:

- scaled: both engines pay the same for the same step, from the paper's own curve for a 13B model
  scaled to this one, without any host work. What differs is only who runs when.
- equal: both pay what FastGen's steps cost (see own). Again only the scheduling differs.
- own: each engine has its own price for host work and tokens, fitted to the ends of its curves in
  the paper (1 and 32 clients, 60 and 128 tokens); what lies between is simulated.

Beside each stands what was read off the paper's figures. No GPU ran for this.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.measurement import write_measurement
from benchmarks.paper_engines import ENGINES, SCALED, OwnCosts, PaperEngine, simulator
from benchmarks.paper_figures import (
    CLIENTS,
    CURVES,
    EFFECTIVE,
    EFFECTIVE_RATIO,
    EQUAL_RATE,
    LATENCY_RATIO,
    P95_RATIO,
    TOKEN_RATES,
    TOKEN_SECONDS,
)
from benchmarks.paper_plots import draw
from fastgen_jax.bench.machine import load_average
from fastgen_jax.bench.sla import ServiceLevel, effective_throughput
from fastgen_jax.bench.summary import summarize
from fastgen_jax.sim.result import SimulationResult
from fastgen_jax.sim.workloads.closed_loop import ClosedLoop
from fastgen_jax.sim.workloads.lengths import NormalLengths
from fastgen_jax.sim.workloads.mix import RequestMix
from fastgen_jax.sim.workloads.prompts import UniquePrompts

SETUPS = ((2600, 60), (2600, 128))
LONGEST_PROMPT = 4000
WANTED = 0.15
RESULT = Path(__file__).parent / "results" / "paper_simulation.json"

Point = dict[str, Any]
Curve = list[Point]


def workload(setup: tuple[int, int], num_clients: int, num_requests: int) -> ClosedLoop:
    """The paper's clients; they start within 10 ms for each of them."""
    prompt_tokens, output_tokens = setup
    mix = RequestMix(
        prompts=UniquePrompts(NormalLengths(mean=prompt_tokens, most=LONGEST_PROMPT)),
        outputs=NormalLengths(mean=output_tokens),
    )
    return ClosedLoop(
        num_clients=num_clients,
        num_requests=num_requests,
        mix=mix,
        start_spread=0.01 * num_clients,
    )


def measure(
    engine: PaperEngine, costs: OwnCosts, setup: tuple[int, int], clients: int, num_requests: int
) -> Point:
    """One point of a curve, as plain numbers."""
    result = simulator(engine, costs).run(workload(setup, clients, num_requests))
    summary = summarize(result.records)
    assert summary.latency is not None
    assert summary.ttft is not None
    assert summary.gaps is not None
    levels = {rate: ServiceLevel(token_rate=rate) for rate in TOKEN_RATES}
    return {
        "clients": clients,
        "clients_over_latency": clients / summary.latency.mean,
        "effective": {
            str(rate): asdict(found) | {"effective": found.effective}
            for rate, level in levels.items()
            for found in (effective_throughput(result.records, level),)
        },
        "decisions": decisions(result),
        "requests_per_second": summary.requests_per_second,
        "latency": asdict(summary.latency),
        "ttft": asdict(summary.ttft),
        "gaps": asdict(summary.gaps),
    }


def decisions(result: SimulationResult) -> dict[str, float]:
    """Where the device's time and the decodes went, by what steps held."""
    seconds = {"prompts_alone": 0.0, "decodes_alone": 0.0, "both": 0.0}
    num_decodes = num_beside_prompts = 0
    for step in result.steps:
        num_prompt_tokens = step.num_tokens - step.num_decode_tokens
        kind = "both" if num_prompt_tokens and step.num_decode_tokens else "decodes_alone"
        if not step.num_decode_tokens:
            kind = "prompts_alone"
        seconds[kind] += step.end - step.start
        num_decodes += step.chain_length * step.num_decode_tokens
        num_beside_prompts += step.num_decode_tokens if kind == "both" else 0
    num_steps = sum(step.chain_length for step in result.steps)
    num_tokens = sum(step.chain_length * step.num_tokens for step in result.steps)
    total = sum(seconds.values())
    return {f"share_of_time_{kind}": spent / total for kind, spent in seconds.items()} | {
        "share_of_decodes_beside_prompts": num_beside_prompts / num_decodes,
        "num_steps": num_steps,
        "mean_tokens_of_a_step": num_tokens / num_steps,
    }


def simulate(
    costs_of: Callable[[PaperEngine], OwnCosts], num_requests: int
) -> dict[str, dict[str, Curve]]:
    """Setup, engine -> points by clients."""
    return {
        name_of(setup): {
            name: [
                measure(engine, costs_of(engine), setup, clients, num_requests)
                for clients in CLIENTS
            ]
            for name, engine in ENGINES.items()
        }
        for setup in SETUPS
    }


def name_of(setup: tuple[int, int]) -> str:
    """As the paper writes it."""
    return f"{setup[0]}/{setup[1]}"


def ratios(curves: Mapping[str, Mapping[str, Curve]]) -> dict[str, dict[str, float]]:
    """The paper's three claims, simulated."""
    short, long = curves["2600/60"], curves["2600/128"]
    peaks = {
        name: max(point["effective"]["4"]["effective"] for point in points)
        for name, points in short.items()
    }
    at_16 = {
        name: next(p for p in points if p["clients"] == 16)["gaps"]["p95"]
        for name, points in long.items()
    }
    latencies = {name: latency_at(points, EQUAL_RATE) for name, points in short.items()}
    # As close to vLLM's own limit as the paper's point is to its.
    top = CURVES[(2600, 60), "vllm"][-1].requests_per_second
    near = EQUAL_RATE / top * short["vllm"][-1]["clients_over_latency"]
    nearby = {name: latency_at(points, near) for name, points in short.items()}
    return {
        "effective throughput at 4 tokens/s": versus(
            peaks["fastgen"], peaks["vllm"], EFFECTIVE_RATIO
        ),
        f"latency at {EQUAL_RATE} requests/s": versus(
            latencies["vllm"], latencies["fastgen"], LATENCY_RATIO
        ),
        f"latency at {near:.2f} requests/s, as near to vLLM's limit": versus(
            nearby["vllm"], nearby["fastgen"], LATENCY_RATIO
        ),
        "P95 between tokens, 16 clients": versus(at_16["vllm"], at_16["fastgen"], P95_RATIO),
    }


def versus(above: float, below: float, paper: float) -> dict[str, float]:
    """A ratio beside the paper's."""
    ratio = above / below
    return {
        "above": above,
        "below": below,
        "ratio": ratio,
        "paper": paper,
        "error": ratio / paper - 1,
    }


def latency_at(points: Curve, rate: float) -> float:
    """Mean latency at a throughput, straight between the numbers of clients; NaN beyond them."""
    for left, right in pairwise(points):
        low, high = left["clients_over_latency"], right["clients_over_latency"]
        if low <= rate <= high:
            weight = (rate - low) / (high - low)
            return (1 - weight) * left["latency"]["mean"] + weight * right["latency"]["mean"]
    return float("nan")


def report(name: str, curves: Mapping[str, Mapping[str, Curve]]) -> None:
    """Print a setting's curves beside the paper's."""
    print(f"\n== {name} costs")
    for setup in SETUPS:
        for engine, points in curves[name_of(setup)].items():
            row = " ".join(
                f"{p['clients']}:{p['clients_over_latency']:.2f}@{p['latency']['mean']:.1f}"
                for p in points
            )
            paper = " ".join(
                f"{p.clients}:{p.requests_per_second:.2f}@{p.latency:.1f}"
                for p in CURVES[setup, engine]
            )
            print(f"{name_of(setup)} {engine:8} requests/s@latency  {row}\n{'':>14} paper  {paper}")
    for rate in TOKEN_RATES:
        for engine, points in curves["2600/60"].items():
            found = [point["effective"][str(rate)]["effective"] for point in points]
            print(f"effective at {rate}/s {engine:8} {numbers(found)}")
            print(f"{'':>18} paper {numbers(EFFECTIVE[engine, rate])}")
    for engine, points in curves["2600/128"].items():
        gaps = next(point for point in points if point["clients"] == 16)["gaps"]
        paper = three(TOKEN_SECONDS[engine])
        print(f"seconds between tokens {engine:8} {three(gaps)}  paper {paper}")
    for claim, found in ratios(curves).items():
        verdict = "within" if abs(found["error"]) <= WANTED else "beyond"
        print(
            f"{claim}: {found['ratio']:.2f}, paper {found['paper']}: {found['error']:+.0%}, "
            f"{verdict} {WANTED:.0%}"
        )


def numbers(values: Sequence[float]) -> str:
    """In columns."""
    return " ".join(f"{value:5.2f}" for value in values)


def three(gaps: Mapping[str, float]) -> str:
    """Three percentiles in a line."""
    return " ".join(f"{name} {gaps[name]:.3f}" for name in ("p50", "p90", "p95"))


def main() -> None:
    """Simulate, print, write the numbers and the plots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    load = load_average()
    costs: dict[str, Callable[[PaperEngine], OwnCosts]] = {
        "scaled": lambda engine: SCALED,
        "equal": lambda engine: ENGINES["fastgen"].own,
        "own": lambda engine: engine.own,
    }
    curves = {name: simulate(costs_of, arguments.requests) for name, costs_of in costs.items()}
    for name, found in curves.items():
        report(name, found)
    write_measurement(
        arguments.out,
        settings={
            "num_requests": arguments.requests,
            "engines": {name: asdict(engine) for name, engine in ENGINES.items()},
            "scaled_costs": asdict(SCALED),
            "is_simulated": True,
        },
        load_at_start=load,
        numbers={
            "ratios": {name: ratios(found) for name, found in curves.items()},
            "curves": curves,
        },
    )
    draw(arguments.out.parent, curves)


if __name__ == "__main__":
    main()

"""Policies measured in one engine: the FastGen paper's comparison, on the machine at hand.

One model is loaded and compiled once; the policies take turns on it, with the paper's closed loop
of clients (benchmarks/policy_setups.py says how its setup is scaled). Before each round a run of
another workload is recorded and the simulator's costs are fitted to it; every run is then simulated
as well, so that the results also say how well a recorded run predicts other ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from benchmarks.engine_load import serve
from benchmarks.engine_turns import note
from benchmarks.measurement import write_measurement
from benchmarks.policy_plots import draw
from benchmarks.policy_points import Point, Run, prediction_errors, ratios, report
from benchmarks.policy_setups import POLICIES, SETUPS, SPLITFUSE, Setup
from fastgen_jax import LLM
from fastgen_jax.bench.machine import load_average
from fastgen_jax.bench.records import RequestRecord
from fastgen_jax.sim.costs.fitted import FittedCost
from fastgen_jax.sim.simulator import Simulator
from fastgen_jax.sim.step_recorder import StepRecorder
from fastgen_jax.sim.workloads.closed_loop import ClosedLoop
from fastgen_jax.sim.workloads.lengths import UniformLengths
from fastgen_jax.sim.workloads.mix import RequestMix
from fastgen_jax.sim.workloads.prompts import UniquePrompts

# Recorded for the costs: lengths, clients and order have nothing to do with the setups'.
RECORDED_MIX = RequestMix(
    prompts=UniquePrompts(UniformLengths(8, 300)), outputs=UniformLengths(8, 96)
)
RECORDED_CLIENTS = (1, 3, 8, 16)
RECORDED_BUDGET = 300 + max(RECORDED_CLIENTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyComparison:
    """Serves, simulates, prints, writes every token's time, and draws."""

    model: str = "smollm2-135m-instruct"
    """A built-in name, a directory, a .gguf file or a Hub id."""
    dtype: str = "bfloat16"
    """"float32" or "bfloat16"."""
    rounds: int = 3
    """How often every policy gets its turn at every point."""
    requests: int = 16
    """Of each run, and at least 3 for each client."""
    setups: tuple[str, ...] = tuple(setup.name for setup in SETUPS)
    """Which ones, by prompt and output tokens."""
    policies: tuple[str, ...] = tuple(POLICIES)
    """Which ones; SplitFuse ("fcfs") is what the others are compared with."""
    quick: bool = False
    """1 round, 2 clients, 8 requests: does it work at all?"""
    out: Path = Path("benchmarks/results/policy_comparison.json")
    """Where the numbers go; plots go beside it."""

    def main(self) -> None:
        """Measure, print, write."""
        load_at_start = load_average()
        options, setups = self, [setup for setup in SETUPS if setup.name in self.setups]
        if self.quick:
            options = replace(self, rounds=1, requests=8)
            setups = [replace(setup, clients=(2,)) for setup in setups]
        runs: list[Run] = []
        for runs, raw, fits in options.measure(setups):
            # After each round, so that an interrupt loses none that was complete.
            write_measurement(
                self.out,
                settings=options.settings(setups) | {"rounds": len(fits)},
                load_at_start=load_at_start,
                numbers={
                    "ratios": {setup.name: ratios(runs, setup.name) for setup in setups},
                    "prediction_errors": prediction_errors(runs),
                    "fits": [asdict(fit) for fit in fits],
                    "runs": [asdict(run) for run in runs],
                },
            )
            lines = (json.dumps(run, separators=(",", ":")) + "\n" for run in raw)
            self.out.with_name(f"{self.out.stem}_records.jsonl").write_text("".join(lines))
            draw(self.out.parent, setups, runs)
        for setup in setups:
            print(report(setup.name, runs))
        for name, error in prediction_errors(runs).items():
            print(f"simulated {name}: {error}")

    def measure(
        self, setups: Sequence[Setup]
    ) -> Iterator[tuple[list[Run], list[dict[str, Any]], list[FittedCost]]]:
        """After each round: every run so far, its requests, and each round's costs."""
        recorder = StepRecorder()
        runs: list[Run] = []
        raw: list[dict[str, Any]] = []
        fits: list[FittedCost] = []
        points = [(setup, clients) for setup in setups for clients in setup.clients]
        bar = tqdm(total=self.rounds * (1 + len(points) * len(self.policies)), desc="Runs")
        with LLM(self.model, observers=[recorder], **self.engine_settings(setups)) as llm, bar:
            for number in range(self.rounds):
                fits.append(record(llm, recorder, setups, quick=self.quick))
                bar.update()
                for index, (setup, clients) in enumerate(points):
                    # Who goes first changes, so that no policy always follows the same one.
                    turn = (index + number) % len(self.policies)
                    for policy in (*self.policies[turn:], *self.policies[:turn]):
                        seed = 42 + number
                        records, run = self.run(llm, setup, policy, clients, seed, fits[-1])
                        runs.append(replace(run, round=number))
                        raw.append(_raw(runs[-1], records))
                        bar.update()
                        note(f"{setup.name} {policy} {clients}: {runs[-1].measured}")
                yield runs, raw, fits

    def run(
        self,
        llm: LLM,
        setup: Setup,
        policy: str,
        clients: int,
        seed: int,
        costs: FittedCost,
    ) -> tuple[tuple[RequestRecord, ...], Run]:
        """One run, measured and simulated."""
        llm.use_policy(policy, token_budget=setup.budget_of(policy))
        workload = setup.workload(clients, max(self.requests, 3 * clients), seed)
        records = serve(llm.engine, workload)
        config = llm.engine.scheduler.config
        simulated = Simulator(config, costs, policy=policy).run(workload).records
        run = Run(
            setup=setup.name,
            policy=policy,
            clients=clients,
            round=0,
            measured=Point.of(records, setup.level),
            simulated=Point.of(simulated, setup.level),
        )
        return records, run

    def engine_settings(self, setups: Sequence[Setup]) -> dict[str, Any]:
        """One engine for all: room for the longest step, no chains, nothing shared."""
        budget = max(setup.budget_of(policy) for setup in setups for policy in POLICIES)
        return {
            "dtype": self.dtype,
            "token_budget": max(budget, RECORDED_BUDGET),
            "max_num_seqs": max(*RECORDED_CLIENTS, *(max(setup.clients) for setup in setups)),
            "max_model_len": 1024,
            "max_chained_steps": 1,
            "enable_prefix_caching": False,
            "show_progress": False,
        }

    def settings(self, setups: Sequence[Setup]) -> dict[str, Any]:
        """What was run, for the results file."""
        return {
            "model": Path(self.model).name,
            "dtype": self.dtype,
            "quick": self.quick,
            "rounds": self.rounds,
            "requests": self.requests,
            "engine": self.engine_settings(setups),
            "setups": [asdict(setup) for setup in setups],
            "policies": {name: POLICIES[name] for name in self.policies},
            "budgets": {s.name: {p: s.budget_of(p) for p in self.policies} for s in setups},
        }


def record(
    llm: LLM, recorder: StepRecorder, setups: Sequence[Setup], *, quick: bool = False
) -> FittedCost:
    """Costs fitted to a recorded run of another workload; what ran before warms up."""
    count = 4 if quick else 8
    recorder.steps.clear()
    for clients in RECORDED_CLIENTS:
        for policy, budget in ((SPLITFUSE, setups[0].token_budget), ("iteration_level", None)):
            llm.use_policy(policy, token_budget=budget)
            workload = ClosedLoop(
                num_clients=clients, num_requests=count, mix=RECORDED_MIX, seed=7 * clients
            )
            serve(llm.engine, workload)
    return FittedCost.fit(recorder.steps)


def _raw(run: Run, records: Sequence[RequestRecord]) -> dict[str, Any]:
    """Every request of a run: prompt tokens, when it was sent, when each token came; in ms."""
    begin = min(record.arrival_time for record in records)
    return {
        "setup": run.setup,
        "policy": run.policy,
        "clients": run.clients,
        "round": run.round,
        "requests": [
            [
                record.num_prompt_tokens,
                round(1e3 * (record.arrival_time - begin), 1),
                [round(1e3 * (time - begin), 1) for time in record.token_times.tolist()],
            ]
            for record in records
        ],
    }


if __name__ == "__main__":
    tyro.cli(PolicyComparison).main()

"""Tokens per second of this engine and others on one offline workload, side by side.

Every engine is a process of its own, started once and kept. They take turns, A B A B …, in one
run, so that all see the same machine; while one works, the others rest, and an engine that burns
CPU when idle is stopped meanwhile. Each runs the same requests with the same weights, greedily,
past EOS, without a prefix cache, and must return exactly the tokens asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.comparison import (
    Round,
    Summary,
    check_lengths,
    first_token_agreement,
    make_round,
    ratios,
    summarize,
)
from benchmarks.engine_process import IDLE_SHARE, EngineProcess
from benchmarks.machine import load_average, machine_facts
from benchmarks.timing import Spread
from benchmarks.workload import Mix, Workload, draw_workload

OWN = "fastgen_jax"
PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineThroughput:
    """Runs the comparison, prints it, and writes every number."""

    model: str = "smollm2-135m-instruct"
    """What this engine runs: a built-in name, a directory, a .gguf file or a Hub id."""
    hf_model: Path | None = None
    """What the other engines run: a Hugging Face directory with the same weights."""
    vllm_python: Path | None = None
    """Interpreter of an environment that has vLLM."""
    hf_python: Path | None = None
    """Interpreter of an environment that has transformers."""
    dtype: str = "bfloat16"
    """"float32" or "bfloat16", for all engines."""
    rounds: int = 5
    """Measured turns of each engine."""
    warmup_rounds: int = 1
    """Turns before that, which don't count."""
    mix: Mix = field(default_factory=Mix)
    """The request mix."""
    max_model_len: int = 2048
    """Most tokens of a request."""
    max_num_seqs: int = 32
    """Most requests running at once."""
    token_budget: int | None = None
    """Most tokens of one of our steps; None is the engine's default."""
    vllm_token_budget: int = 512
    """Most tokens of one of vLLM's steps."""
    vllm_eager: bool = False
    """Leave out vLLM's torch.compile: starts sooner, runs slower; for trying things out."""
    matmul_repeats: int = 9
    """Timed calls per step shape for the matmul limit; 0 leaves it out."""
    quick: bool = False
    """4 requests, short ones, 1 round: does it work at all?"""
    log_dir: Path | None = None
    """Where the engines' logs go; None drops them."""
    out: Path = Path("benchmarks/results/offline_throughput.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Measure, print, write."""
        options = self._quick() if self.quick else self
        load_at_start = load_average()
        workload = draw_workload(options.mix)
        commands = options.commands()
        with ExitStack() as stack:
            engines = [
                stack.enter_context(options.start(name, command))
                for name, command in commands.items()
            ]
            idle = _settle(engines)
            rounds, answers = _take_turns(engines, workload, options)
        startup = {
            engine.name: {"startup_seconds": engine.startup_seconds, **engine.ready}
            for engine in engines
        }
        limits = options.matmul_limits(workload, answers[OWN]["steps_by_shape"])
        summaries = summarize(rounds)
        faster = ratios(rounds, OWN)
        print(_table(summaries, faster, startup, limits))
        outputs = {name: answer["output_token_ids"] for name, answer in answers.items()}
        own_outputs = outputs.pop(OWN)
        content = {
            "machine": asdict(machine_facts()),
            "load_average": {"start": load_at_start, "end": load_average()},
            "settings": options.settings(),
            "mix": asdict(options.mix),
            "num_prompt_tokens": workload.num_prompt_tokens,
            "num_output_tokens": workload.num_output_tokens,
            "startup": startup,
            "idle_cores": idle,
            "rounds": [asdict(one) for one in rounds],
            "summaries": {name: asdict(one) for name, one in summaries.items()},
            "times_faster": {name: asdict(one) for name, one in faster.items()},
            "first_token_agreement": first_token_agreement(own_outputs, outputs),
            "steps_by_shape": answers[OWN]["steps_by_shape"],
            "num_padding_tokens": answers[OWN]["num_padding_tokens"],
            "matmul_limit": limits,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def commands(self) -> dict[str, list[str]]:
        """The command of every engine that was asked for; ours is always among them."""
        own = [sys.executable, "-m", "benchmarks.own_engine", "--model", self.model]
        own += [*self._common(), *self._sizes()]
        if self.token_budget is not None:
            own += ["--token-budget", str(self.token_budget)]
        commands = {OWN: own}
        for name, python in (("vllm", self.vllm_python), ("transformers", self.hf_python)):
            if python is None:
                continue
            if self.hf_model is None:
                raise SystemExit(f"{name} needs --hf-model, a directory with the same weights")
            script = PEERS / f"{name}_peer.py"
            commands[name] = [str(python), str(script), "--model", str(self.hf_model)]
            commands[name] += self._common()
        if "vllm" in commands:
            commands["vllm"] += [*self._sizes(), "--token-budget", str(self.vllm_token_budget)]
            commands["vllm"] += ["--eager"] if self.vllm_eager else []
        return commands

    def start(self, name: str, command: Sequence[str]) -> EngineProcess:
        """The engine, ready and paused: others start or run next."""
        _note(f"starting {name}")
        if self.log_dir is not None:
            self.log_dir.mkdir(parents=True, exist_ok=True)
        log = None if self.log_dir is None else self.log_dir / f"{name}.log"
        engine = EngineProcess(name, command, log=log)
        engine.pause()
        _note(f"{name} ready after {engine.startup_seconds:.1f} s")
        return engine

    def settings(self) -> dict[str, Any]:
        """What was asked for, without places on this machine."""
        names = (
            "dtype",
            "rounds",
            "warmup_rounds",
            "max_model_len",
            "max_num_seqs",
            "token_budget",
            "vllm_token_budget",
            "vllm_eager",
            "quick",
        )
        return {name: getattr(self, name) for name in names}

    def matmul_limits(
        self, workload: Workload, steps_by_shape: Sequence[dict[str, Any]]
    ) -> dict[str, float]:
        """Tokens per second that the machine's products alone allow; see matmul_limit."""
        if self.matmul_repeats == 0:
            return {}
        # Late, so that this process holds no jax while the engines run.
        from benchmarks.matmul_limit import (
            Products,
            limits_of,
            random_weights,
            read_model_config,
        )
        from fastgen_jax.batching import StepShape

        _note("measuring the matmul limit")
        steps = {StepShape(*item["shape"]): item["count"] for item in steps_by_shape}
        model = read_model_config(self.model)
        products = Products(model, random_weights(model, self.dtype))
        times = [products.time(shape, self.matmul_repeats) for shape in steps]
        return limits_of(times, steps, workload)

    def _common(self) -> list[str]:
        return ["--dtype", self.dtype]

    def _sizes(self) -> list[str]:
        return [
            "--max-model-len",
            str(self.max_model_len),
            "--max-num-seqs",
            str(self.max_num_seqs),
        ]

    def _quick(self) -> OfflineThroughput:
        mix = replace(self.mix, num_requests=4, prompt_mean=48.0, output_mean=8.0)
        return replace(
            self, mix=mix, rounds=1, warmup_rounds=0, matmul_repeats=min(self.matmul_repeats, 1)
        )


def _settle(engines: Sequence[EngineProcess]) -> dict[str, float]:
    """Cores each paused engine keeps busy when idle; only those that keep any stay paused."""
    idle: dict[str, float] = {}
    for engine in engines:
        engine.resume()
        share = engine.idle_share()
        if share >= IDLE_SHARE:
            engine.pause()
        idle[engine.name] = round(share, 3)
        _note(f"{engine.name} keeps {share:.3f} cores busy when idle")
    return idle


def _take_turns(
    engines: Sequence[EngineProcess], workload: Workload, options: OfflineThroughput
) -> tuple[list[Round], dict[str, dict[str, Any]]]:
    """The measured rounds, and each engine's last answer."""
    rounds: list[Round] = []
    answers: dict[str, dict[str, Any]] = {}
    for number in range(1 - options.warmup_rounds, options.rounds + 1):
        for engine in engines:
            one, answers[engine.name] = _take_turn(engine, engines, workload, number)
            _note(
                f"round {number} {engine.name}: {one.seconds:.2f} s, "
                f"{one.total_tokens_per_second:.1f} tokens/s"
            )
            if number > 0:
                rounds.append(one)
    return rounds, answers


def _take_turn(
    engine: EngineProcess, engines: Sequence[EngineProcess], workload: Workload, number: int
) -> tuple[Round, dict[str, Any]]:
    others = [other for other in engines if other is not engine]
    load = load_average()
    before = sum(other.cpu_seconds() for other in others)
    with engine.at_work():
        answer = engine.run(workload.requests)
    check_lengths(engine.name, workload, answer["output_token_ids"])
    one = make_round(
        workload,
        engine=engine.name,
        number=number,
        seconds=answer["seconds"],
        others_cpu_seconds=sum(other.cpu_seconds() for other in others) - before,
        load_average=load,
    )
    return one, answer


def _table(
    summaries: dict[str, Summary],
    faster: dict[str, Spread],
    startup: dict[str, dict[str, Any]],
    limits: dict[str, float],
) -> str:
    """Medians with their lowest and highest round, a line per engine, then ratios and limits."""
    head = ("engine", "total tokens/s", "generated tokens/s", "start s")
    lines = [f"{head[0]:<14}{head[1]:>26}{head[2]:>26}{head[3]:>9}"]
    for name, one in summaries.items():
        lines.append(
            f"{name:<14}{_spread_text(one.total_tokens_per_second):>26}"
            f"{_spread_text(one.output_tokens_per_second):>26}"
            f"{startup[name]['startup_seconds']:9.1f}"
        )
    for name, ratio in faster.items():
        lines.append(f"{OWN} / {name}: {_spread_text(ratio, 2)} times the tokens per second")
    own = summaries[OWN].total_tokens_per_second.median
    for name, limit in limits.items():
        lines.append(f"matmul limit {name}: {limit:.1f} tokens/s, of which {own / limit:.0%}")
    return "\n".join(lines)


def _spread_text(spread: Spread, digits: int = 1) -> str:
    return f"{spread.median:.{digits}f} ({spread.low:.{digits}f}–{spread.high:.{digits}f})"


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    tyro.cli(OfflineThroughput, description=__doc__).main()

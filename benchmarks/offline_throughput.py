"""Tokens per second of this engine and others on one offline workload, side by side.

Every engine is a process of its own, started once and kept. They take turns, A B A B …, in one
run, so that all see the same machine; while one works, the others rest, and an engine that burns
CPU when idle is stopped meanwhile. Each runs the same requests with the same weights, greedily,
past EOS, without a prefix cache, and must return exactly the tokens asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

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
from benchmarks.engine_commands import (
    EngineSizes,
    llama_cpp_command,
    own_command,
    transformers_command,
    vllm_command,
)
from benchmarks.engine_turns import EngineTurns, note
from benchmarks.llama_tools import BatchedBench, BatchedRate
from benchmarks.workload import Mix, Workload, draw_workload
from fastgen_jax.bench.machine import load_average, machine_facts
from fastgen_jax.bench.spread import Spread

OWN = "fastgen_jax"
LLAMA = "llama.cpp"


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
    llama_server: Path | None = None
    """llama.cpp's llama-server."""
    llama_batched_bench: Path | None = None
    """llama.cpp's llama-batched-bench, as a second figure."""
    llama_model: Path | None = None
    """What llama.cpp runs: a .gguf file with the same weights; its precision is the file's."""
    dtype: str = "bfloat16"
    """"float32" or "bfloat16", for all engines but llama.cpp."""
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
    llama_ubatch: int = 512
    """Most tokens of one pass of llama.cpp."""
    llama_flash_attention: Literal["on", "off", "auto"] = "auto"
    """llama.cpp's attention."""
    llama_kv_unified: bool = False
    """One cache for all of llama.cpp's slots, instead of one each."""
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
        with EngineTurns(options.commands(), log_dir=options.log_dir) as engines:
            rounds, batched, answers = _take_turns(engines, workload, options)
            startup, idle = engines.startup, engines.idle_cores
        limits = options.matmul_limits(workload, startup[OWN], answers[OWN])
        summaries = summarize(rounds)
        faster = ratios(rounds, OWN)
        bench = batched_summary(rounds, batched)
        print(_table(summaries, faster, startup, limits))
        if bench:
            rate = Spread(**bench["tokens_per_second"]["total"])
            print(f"llama-batched-bench: {_spread_text(rate)} total tokens/s")
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
            "llama_batched_bench": bench,
            "first_token_agreement": first_token_agreement(own_outputs, outputs),
            "steps_by_shape": answers[OWN]["steps_by_shape"],
            "num_padding_tokens": answers[OWN]["num_padding_tokens"],
            "matmul_limit": limits,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def commands(self) -> dict[str, list[str]]:
        """The command of every engine that was asked for; ours is always among them."""
        sizes = EngineSizes(max_model_len=self.max_model_len, max_num_seqs=self.max_num_seqs)
        commands = {
            OWN: own_command(self.model, sizes, dtype=self.dtype, token_budget=self.token_budget)
        }
        if self.llama_server is not None:
            commands[LLAMA] = llama_cpp_command(
                self.llama_server,
                self._llama_file(),
                sizes,
                ubatch=self.llama_ubatch,
                flash_attention=self.llama_flash_attention,
                kv_unified=self.llama_kv_unified,
            )
        if self.vllm_python is not None:
            commands["vllm"] = vllm_command(
                self.vllm_python,
                self._hf_directory("vllm"),
                sizes,
                dtype=self.dtype,
                token_budget=self.vllm_token_budget,
                eager=self.vllm_eager,
            )
        if self.hf_python is not None:
            directory = self._hf_directory("transformers")
            commands["transformers"] = transformers_command(
                self.hf_python, directory, dtype=self.dtype
            )
        return commands

    def batched_bench(self, workload: Workload) -> BatchedBench | None:
        """llama.cpp's own benchmark with requests of the workload's mean lengths."""
        if self.llama_batched_bench is None:
            return None
        num_requests = len(workload.requests)
        return BatchedBench(
            binary=self.llama_batched_bench,
            model=self._llama_file(),
            num_requests=num_requests,
            prompt_length=round(workload.num_prompt_tokens / num_requests),
            output_length=round(workload.num_output_tokens / num_requests),
            ubatch=self.llama_ubatch,
            flash_attention=self.llama_flash_attention,
        )

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
            "llama_ubatch",
            "llama_flash_attention",
            "llama_kv_unified",
            "quick",
        )
        file = {"llama_model": None if self.llama_model is None else self.llama_model.name}
        return {**{name: getattr(self, name) for name in names}, **file}

    def matmul_limits(
        self, workload: Workload, engine: Mapping[str, Any], answer: Mapping[str, Any]
    ) -> dict[str, float]:
        """Tokens per second that XLA's products alone allow; see matmul_limit."""
        if self.matmul_repeats == 0:
            return {}
        # Late, so that this process holds no jax while the engines run.
        from benchmarks.matmul_limit import (
            Products,
            limits_of,
            random_weights,
            read_model_config,
            xla_ladder,
            xla_steps,
        )

        note("measuring the matmul limit")
        model = read_model_config(self.model)
        steps = xla_steps(engine, answer)
        products = Products(model, random_weights(model, self.dtype))
        shapes = tuple(steps) or xla_ladder(model, self.dtype)
        times = [products.time(shape, self.matmul_repeats) for shape in shapes]
        return limits_of(times, steps, workload)

    def _hf_directory(self, name: str) -> Path:
        if self.hf_model is None:
            raise SystemExit(f"{name} needs --hf-model, a directory with the same weights")
        return self.hf_model

    def _llama_file(self) -> Path:
        if self.llama_model is None:
            raise SystemExit("llama.cpp needs --llama-model, a .gguf file with the same weights")
        return self.llama_model

    def _quick(self) -> OfflineThroughput:
        mix = replace(self.mix, num_requests=4, prompt_mean=48.0, output_mean=8.0)
        return replace(
            self, mix=mix, rounds=1, warmup_rounds=0, matmul_repeats=min(self.matmul_repeats, 1)
        )


def _take_turns(
    engines: EngineTurns, workload: Workload, options: OfflineThroughput
) -> tuple[list[Round], list[BatchedRate], dict[str, dict[str, Any]]]:
    """The measured rounds, those of llama.cpp's own benchmark, and each engine's last answer."""
    rounds: list[Round] = []
    batched: list[BatchedRate] = []
    answers: dict[str, dict[str, Any]] = {}
    bench = options.batched_bench(workload)
    for number in range(1 - options.warmup_rounds, options.rounds + 1):
        for name in engines.names:
            turn = engines.run(name, workload.requests)
            answers[name] = turn.answer
            check_lengths(name, workload, turn.answer["output_token_ids"])
            one = make_round(
                workload,
                engine=name,
                number=number,
                seconds=turn.seconds,
                others_cpu_seconds=turn.others_cpu_seconds,
                load_average=turn.load_average,
            )
            note(
                f"round {number} {name}: {one.seconds:.2f} s, "
                f"{one.total_tokens_per_second:.1f} tokens/s"
            )
            if number > 0:
                rounds.append(one)
        if bench is not None and number > 0:
            with engines.all_paused():
                batched.append(bench.run())
            note(f"round {number} llama-batched-bench: {batched[-1].total:.1f} tokens/s")
    return rounds, batched, answers


def batched_summary(rounds: Sequence[Round], batched: Sequence[BatchedRate]) -> dict[str, Any]:
    """llama-batched-bench's rates, and our tokens per second over its, round by round."""
    if not batched:
        return {}
    own = [one.total_tokens_per_second for one in rounds if one.engine == OWN]
    faster = [ours / theirs.total for ours, theirs in zip(own, batched, strict=True)]
    rates = {
        part: asdict(Spread.of([getattr(one, part) for one in batched]))
        for part in ("total", "prefill", "decode")
    }
    return {"tokens_per_second": rates, "times_faster": asdict(Spread.of(faster))}


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


if __name__ == "__main__":
    tyro.cli(OfflineThroughput, description=__doc__).main()

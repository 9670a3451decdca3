"""One request at a time: decode tokens per second, and the time to a first token, of all engines.

Every engine is timed by the same requests, sent one by one: a short prompt with one output token,
the same prompt with many, and a long prompt with one output token. The decode rate is that of the
tokens after the first: their number over the difference of the first two times, so that neither
the prompt nor what a call costs counts. The engines take turns, as in offline_throughput; the
memory's read rate is measured in every round, and tells how much of it each engine uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.comparison import first_token_agreement
from benchmarks.engine_commands import (
    EngineSizes,
    llama_cpp_command,
    own_command,
    transformers_command,
    vllm_command,
)
from benchmarks.engine_turns import EngineTurns, note
from benchmarks.llama_tools import SingleBench, SingleRate, num_threads
from benchmarks.measurement import write_measurement
from benchmarks.memory_read import ReadRate, measure_memory_read
from benchmarks.stream_numbers import (
    StreamTurn,
    bench_numbers,
    decode_rate,
    own_name,
    stream_ratios,
    summarize_streams,
)
from benchmarks.weight_bytes import gguf_weight_bytes
from benchmarks.workload import Mix, WorkloadRequest, draw_workload
from fastgen_jax.bench.machine import load_average
from fastgen_jax.bench.spread import Spread

LLAMA = "llama.cpp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of the three requests.

    Attributes:
        decode_prompt: prompt of the two requests that give the decode rate.
        decode_tokens: output of the longer one of them.
        first_token_prompt: prompt of the request that gives the time to the first token.
    """

    decode_prompt: int = 32
    decode_tokens: int = 128
    first_token_prompt: int = 512

    @property
    def max_model_len(self) -> int:
        """Tokens that the longest of the requests needs, rounded up to a multiple of 128."""
        longest = max(self.decode_prompt + self.decode_tokens, self.first_token_prompt + 1)
        return -(-longest // 128) * 128


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleStream:
    """Runs the comparison, prints it, and writes every number."""

    bf16_file: Path
    """The model as a BF16 .gguf file; this engine runs it in bfloat16."""
    q4_1_file: Path | None = None
    """The same model as Q4_1; this engine keeps it packed."""
    q8_0_file: Path | None = None
    """The same model as Q8_0; this engine keeps it packed."""
    llama_server: Path | None = None
    """llama.cpp's llama-server, which runs every file given."""
    llama_bench: Path | None = None
    """llama.cpp's llama-bench, as a second figure for every file given."""
    llama_flash_attention: Literal["on", "off", "auto"] = "auto"
    """llama.cpp's attention."""
    hf_model: Path | None = None
    """A Hugging Face directory with the same weights, for the engines below."""
    vllm_python: Path | None = None
    """Interpreter of an environment that has vLLM."""
    vllm_token_budget: int = 1024
    """Most tokens of one of vLLM's steps: the long prompt in one."""
    vllm_eager: bool = False
    """Leave out vLLM's torch.compile; for trying things out."""
    hf_python: Path | None = None
    """Interpreter of an environment that has transformers."""
    lengths: Lengths = Lengths()
    """The requests."""
    rounds: int = 5
    """Measured turns of each engine."""
    quick: bool = False
    """1 round of 8 tokens after a prompt of 64: does it work at all?"""
    log_dir: Path | None = None
    """Where the engines' logs go; None drops them."""
    out: Path = Path("benchmarks/results/single_stream.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Measure, print, write."""
        options = self
        if self.quick:
            lengths = Lengths(decode_prompt=16, decode_tokens=8, first_token_prompt=64)
            options = replace(self, lengths=lengths, rounds=1)
        load_at_start = load_average()
        requests = draw_requests(options.lengths)
        turns: list[StreamTurn] = []
        benches: dict[str, list[SingleRate]] = {name: [] for name in options.benches()}
        reads: list[ReadRate] = []
        outputs: dict[str, Sequence[int]] = {}
        with EngineTurns(options.commands(), log_dir=options.log_dir) as engines:
            for number in range(options.rounds + 1):  # round 0 warms up
                with engines.all_paused():
                    reads.append(_read(quick=options.quick))
                    for name, bench in options.benches().items():
                        if number > 0:
                            benches[name].append(bench.run())
                for name in engines.names:
                    turn, outputs[name] = take_turn(engines, name, number, requests)
                    note(
                        f"round {number} {name}: {turn.decode_tokens_per_second:.1f} tokens/s, "
                        f"first of {options.lengths.first_token_prompt} after "
                        f"{turn.first_token_seconds:.3f} s"
                    )
                    turns += [turn] * (number > 0)
            startup, idle = engines.startup, engines.idle_cores
        read_rate = Spread.of([read.rate for read in reads])
        streams = summarize_streams(turns, options.weight_bytes(), read_rate.median)
        for name, one in streams.items():
            print(
                f"{name:<20}{one['decode_tokens_per_second']['median']:8.1f} tokens/s"
                f"{one['first_token_seconds']['median']:9.3f} s to the first token"
                f"{one['bandwidth_share']:8.0%} of the memory's read rate"
            )
        own_outputs = outputs.pop(own_name("BF16"))
        agreement = first_token_agreement(
            [[token] for token in own_outputs],
            {name: [[token] for token in ids] for name, ids in outputs.items()},
        )
        write_measurement(
            options.out,
            settings=options.settings(),
            load_at_start=load_at_start,
            numbers={
                "startup": startup,
                "idle_cores": idle,
                "memory_read": {**asdict(reads[0]), "bytes_per_second": asdict(read_rate)},
                "turns": [asdict(turn) for turn in turns],
                "streams": streams,
                "ratios": stream_ratios(turns),
                "llama_bench": bench_numbers(benches, turns),
                "token_agreement": agreement,
            },
        )

    def files(self) -> dict[str, Path]:
        """The .gguf files given, by how they pack weights."""
        files = {"BF16": self.bf16_file, "Q4_1": self.q4_1_file, "Q8_0": self.q8_0_file}
        return {name: path for name, path in files.items() if path is not None}

    def commands(self) -> dict[str, list[str]]:
        """The command of every engine; ours with each file first, then the others."""
        sizes = EngineSizes(max_model_len=self.lengths.max_model_len, max_num_seqs=1)
        commands = {
            own_name(packing): own_command(
                str(path),
                sizes,
                dtype="bfloat16",
                quantization=None if packing == "BF16" else "gguf",
            )
            for packing, path in self.files().items()
        }
        if self.llama_server is not None:
            for packing, path in self.files().items():
                commands[f"{LLAMA} {packing}"] = llama_cpp_command(
                    self.llama_server,
                    path,
                    sizes,
                    ubatch=512,
                    flash_attention=self.llama_flash_attention,
                    kv_unified=False,
                )
        if self.vllm_python is not None:
            commands["vllm BF16"] = vllm_command(
                self.vllm_python,
                self._hf_directory("vllm"),
                sizes,
                dtype="bfloat16",
                token_budget=self.vllm_token_budget,
                eager=self.vllm_eager,
            )
        if self.hf_python is not None:
            directory = self._hf_directory("transformers")
            commands["transformers BF16"] = transformers_command(
                self.hf_python, directory, dtype="bfloat16"
            )
        return commands

    def benches(self) -> dict[str, SingleBench]:
        """llama-bench for every file, where it was given."""
        if self.llama_bench is None:
            return {}
        return {
            f"{LLAMA} {packing}": SingleBench(
                binary=self.llama_bench,
                model=path,
                prompt_length=self.lengths.first_token_prompt,
                output_length=self.lengths.decode_tokens,
                flash_attention=self.llama_flash_attention,
            )
            for packing, path in self.files().items()
        }

    def weight_bytes(self) -> dict[str, int]:
        """Bytes of weights that a token reads, by packing."""
        return {packing: gguf_weight_bytes(path) for packing, path in self.files().items()}

    def settings(self) -> dict[str, Any]:
        """What was asked for, without places on this machine."""
        names = ("rounds", "vllm_eager", "llama_flash_attention", "quick")
        files = {packing: path.name for packing, path in self.files().items()}
        given = {name: getattr(self, name) for name in names}
        return {**given, "lengths": asdict(self.lengths), "files": files}

    def _hf_directory(self, name: str) -> Path:
        if self.hf_model is None:
            raise SystemExit(f"{name} needs --hf-model, a directory with the same weights")
        return self.hf_model


def draw_requests(lengths: Lengths) -> dict[str, WorkloadRequest]:
    """The three requests by name: "first", "decode" and "long"."""
    prompt, tokens = lengths.decode_prompt, lengths.decode_tokens
    sizes = {
        "first": (prompt, 1),
        "decode": (prompt, tokens),
        "long": (lengths.first_token_prompt, 1),
    }
    return {
        name: replace(_request(num_prompt_tokens), max_tokens=num_tokens)
        for name, (num_prompt_tokens, num_tokens) in sizes.items()
    }


def take_turn(
    engines: EngineTurns, name: str, number: int, requests: Mapping[str, WorkloadRequest]
) -> tuple[StreamTurn, list[int]]:
    """The engine's three requests one by one, and the tokens of the longest output.

    Raises:
        RuntimeError: an output has another length than asked for.
    """
    seconds: dict[str, float] = {}
    outputs: dict[str, list[int]] = {}
    others = 0.0
    for kind, request in requests.items():
        turn = engines.run(name, [request])
        seconds[kind], outputs[kind] = turn.seconds, turn.answer["output_token_ids"][0]
        others += turn.others_cpu_seconds
        if len(outputs[kind]) != request.max_tokens:
            raise RuntimeError(
                f"{name}: {len(outputs[kind])} tokens instead of {request.max_tokens}"
            )
    rate = decode_rate(
        num_tokens=requests["decode"].max_tokens,
        seconds=seconds["decode"],
        seconds_of_first=seconds["first"],
    )
    one = StreamTurn(
        engine=name,
        number=number,
        decode_tokens_per_second=rate,
        first_token_seconds=seconds["long"],
        others_cpu_seconds=others,
    )
    return one, outputs["decode"]


def _request(num_prompt_tokens: int) -> WorkloadRequest:
    mix = Mix(num_requests=1, prompt_mean=num_prompt_tokens, relative_deviation=0.0)
    return draw_workload(mix).requests[0]


def _read(*, quick: bool) -> ReadRate:
    size, passes = (64, 3) if quick else (1024, 9)
    return measure_memory_read(threads=num_threads(), mebibytes=size, passes=passes)


if __name__ == "__main__":
    tyro.cli(SingleStream, description=__doc__).main()

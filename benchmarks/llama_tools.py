"""llama.cpp's own benchmarks, run once each time, beside the engines that take turns."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchedRate:
    """Tokens per second of llama-batched-bench: equal requests, all prompts first, then decodes.

    Attributes:
        total: prompt and generated tokens over the time of both parts.
        prefill: prompt tokens over the time of the prompts.
        decode: generated tokens over the time of the decodes, all streams together.
    """

    total: float
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchedBench:
    """llama-batched-bench with one request size.

    Attributes:
        binary, model: the program and the .gguf file.
        num_requests: streams at once.
        prompt_length, output_length: tokens of each.
        ubatch: most tokens of one pass through the model.
        flash_attention: "on", "off" or "auto".
    """

    binary: Path
    model: Path
    num_requests: int
    prompt_length: int
    output_length: int
    ubatch: int
    flash_attention: str

    def command(self) -> list[str]:
        """With all the cores this process may use, and no more context than needed."""
        threads = str(num_threads())
        context = self.num_requests * (self.prompt_length + self.output_length)
        command = [str(self.binary), "-m", str(self.model), "-c", str(context), "-b", "2048"]
        command += ["-ub", str(self.ubatch), "-fa", self.flash_attention]
        command += ["-npp", str(self.prompt_length), "-ntg", str(self.output_length)]
        command += ["-npl", str(self.num_requests), "-t", threads, "-tb", threads]
        return [*command, "--output-format", "jsonl"]

    def run(self) -> BatchedRate:
        """One run from loading to the last token; only its own timings count."""
        return parse_batched(_output(self.command()))


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleRate:
    """Tokens per second of llama-bench: one prompt, and one stream of decodes from nothing."""

    prefill: float
    decode: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleBench:
    """llama-bench with one prompt length and one output length.

    Attributes:
        binary, model: the program and the .gguf file.
        prompt_length, output_length: tokens of the prefill test and of the decode test.
        flash_attention: "on", "off" or "auto".
    """

    binary: Path
    model: Path
    prompt_length: int
    output_length: int
    flash_attention: str

    def command(self) -> list[str]:
        """One repetition of each test after llama-bench's own warm-up."""
        command = [str(self.binary), "-m", str(self.model), "-t", str(num_threads()), "-r", "1"]
        command += ["-p", str(self.prompt_length), "-n", str(self.output_length)]
        return [*command, "-fa", self.flash_attention, "-o", "jsonl"]

    def run(self) -> SingleRate:
        """One run from loading to the last token; only its own timings count."""
        return parse_single(_output(self.command()))


def parse_batched(text: str) -> BatchedRate:
    """The one measurement in llama-batched-bench's JSON lines.

    Raises:
        ValueError: there is none, or more than one.
    """
    line = _only([line for line in _json_lines(text) if "speed_tg" in line])
    return BatchedRate(total=line["speed"], prefill=line["speed_pp"], decode=line["speed_tg"])


def parse_single(text: str) -> SingleRate:
    """The prefill and the decode test in llama-bench's JSON lines.

    Raises:
        ValueError: one of them is missing, or there more than once.
    """
    lines = _json_lines(text)
    prefill = _only([line for line in lines if line["n_prompt"] > 0 and line["n_gen"] == 0])
    decode = _only([line for line in lines if line["n_prompt"] == 0 and line["n_gen"] > 0])
    return SingleRate(prefill=prefill["avg_ts"], decode=decode["avg_ts"])


def num_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _json_lines(text: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def _only(lines: Sequence[dict[str, float]]) -> dict[str, float]:
    if len(lines) != 1:
        raise ValueError(f"{len(lines)} measurements in the output where one was due")
    return lines[0]


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout

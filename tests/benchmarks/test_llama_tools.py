from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.llama_tools import (
    BatchedBench,
    BatchedRate,
    SingleBench,
    SingleRate,
    num_threads,
    parse_batched,
    parse_single,
)

BATCHED = {"pp": 221, "tg": 64, "pl": 32, "speed_pp": 640.5, "speed_tg": 300.25, "speed": 514.0}
SINGLE = [
    {"n_prompt": 512, "n_gen": 0, "avg_ts": 650.0},
    {"n_prompt": 0, "n_gen": 128, "avg_ts": 98.5},
]


def lines(*measurements: dict[str, float]) -> str:
    return "\n".join(["main: something else", *map(json.dumps, measurements), ""])


def test_rates_of_batched_bench():
    expected = BatchedRate(total=514.0, prefill=640.5, decode=300.25)
    assert parse_batched(lines(BATCHED)) == expected


@pytest.mark.parametrize("count", [0, 2])
def test_batched_bench_must_measure_once(count: int):
    with pytest.raises(ValueError, match=f"{count} measurements"):
        parse_batched(lines(*[BATCHED] * count))


def test_rates_of_single_bench_whatever_their_order():
    expected = SingleRate(prefill=650.0, decode=98.5)
    assert parse_single(lines(*SINGLE)) == parse_single(lines(*SINGLE[::-1])) == expected


def test_single_bench_without_decode_is_refused():
    with pytest.raises(ValueError, match="0 measurements"):
        parse_single(lines(SINGLE[0]))


def test_batched_command_has_room_for_every_token():
    bench = BatchedBench(
        binary=Path("bench"),
        model=Path("model.gguf"),
        num_requests=32,
        prompt_length=221,
        output_length=64,
        ubatch=512,
        flash_attention="on",
    )
    command = bench.command()
    options = dict(zip(command[1::2], command[2::2], strict=False))
    assert int(options["-c"]) == 32 * (221 + 64)
    assert (options["-npp"], options["-ntg"], options["-npl"]) == ("221", "64", "32")
    assert options["-t"] == options["-tb"] == str(num_threads())
    assert (options["-ub"], options["-fa"]) == ("512", "on")


def test_a_bench_that_fails_says_why(tmp_path: Path):
    binary = tmp_path / "bench"
    binary.write_text("#!/bin/sh\necho no such model >&2\nexit 4\n")
    binary.chmod(0o755)
    bench = SingleBench(
        binary=binary,
        model=Path("model.gguf"),
        prompt_length=8,
        output_length=4,
        flash_attention="auto",
    )
    with pytest.raises(RuntimeError, match=r"ended with 4: no such model"):
        bench.run()

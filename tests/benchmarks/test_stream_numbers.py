from __future__ import annotations

import pytest

from benchmarks.llama_tools import SingleRate
from benchmarks.single_stream import Lengths, draw_requests
from benchmarks.stream_numbers import (
    StreamTurn,
    bandwidth_share,
    bench_numbers,
    decode_rate,
    stream_ratios,
    summarize_streams,
)


def turn(engine: str, number: int, rate: float, first: float) -> StreamTurn:
    return StreamTurn(
        engine=engine,
        number=number,
        decode_tokens_per_second=rate,
        first_token_seconds=first,
        others_cpu_seconds=0.0,
    )


TURNS = [
    turn("fastgen_jax BF16", 1, 20.0, 1.0),
    turn("fastgen_jax Q4_1", 1, 60.0, 1.0),
    turn("llama.cpp BF16", 1, 10.0, 3.0),
    turn("llama.cpp Q4_1", 1, 30.0, 0.5),
    turn("fastgen_jax BF16", 2, 30.0, 2.0),
    turn("fastgen_jax Q4_1", 2, 40.0, 1.0),
    turn("llama.cpp BF16", 2, 10.0, 4.0),
    turn("llama.cpp Q4_1", 2, 40.0, 0.5),
]


def test_the_first_token_is_no_decode():
    assert decode_rate(num_tokens=9, seconds=5.0, seconds_of_first=1.0) == 2.0
    with pytest.raises(ValueError, match="9 tokens took 1"):
        decode_rate(num_tokens=9, seconds=1.0, seconds_of_first=1.0)


def test_share_of_the_memory():
    assert bandwidth_share(weight_bytes=100, tokens_per_second=8.0, read_rate=1000.0) == 0.8


def test_streams_read_the_bytes_of_their_packing():
    streams = summarize_streams(TURNS, {"BF16": 200, "Q4_1": 50}, 10_000.0)
    assert streams["fastgen_jax BF16"]["decode_tokens_per_second"]["median"] == 25.0
    assert streams["fastgen_jax BF16"]["bandwidth_share"] == 0.5
    assert streams["llama.cpp Q4_1"]["weight_bytes"] == 50
    assert streams["llama.cpp BF16"]["first_token_seconds"]["median"] == 3.5


def test_ratios_compare_equal_packings_round_by_round():
    ratios = stream_ratios(TURNS)
    assert set(ratios) == {"llama.cpp BF16", "llama.cpp Q4_1"}
    assert ratios["llama.cpp BF16"]["decode"]["median"] == 2.5
    assert ratios["llama.cpp BF16"]["first_token"]["median"] == 2.5
    assert ratios["llama.cpp Q4_1"]["decode"]["low"] == 1.0
    assert ratios["llama.cpp Q4_1"]["first_token"]["high"] == 0.5


def test_llama_bench_is_compared_with_the_same_packing():
    rates = [SingleRate(prefill=100.0, decode=15.0), SingleRate(prefill=200.0, decode=20.0)]
    numbers = bench_numbers({"llama.cpp Q4_1": rates}, TURNS)
    assert numbers["llama.cpp Q4_1"]["decode_ratio"]["median"] == 3.0
    assert numbers["llama.cpp Q4_1"]["prefill_tokens_per_second"]["median"] == 150.0


def test_the_two_decode_requests_have_the_same_prompt():
    requests = draw_requests(Lengths(decode_prompt=8, decode_tokens=5, first_token_prompt=20))
    assert requests["first"].prompt_token_ids == requests["decode"].prompt_token_ids
    assert (requests["first"].max_tokens, requests["decode"].max_tokens) == (1, 5)
    assert len(requests["long"].prompt_token_ids) == 20
    assert requests["long"].max_tokens == 1
    assert Lengths().max_model_len == 640

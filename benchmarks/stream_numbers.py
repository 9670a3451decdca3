"""What the turns of single_stream come to: rates, shares of the memory's speed, ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.llama_tools import SingleRate
from fastgen_jax.bench.spread import Spread

OWN = "fastgen_jax"


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTurn:
    """One engine's turn.

    Attributes:
        engine, number: who, in which round; rounds count from 1.
        decode_tokens_per_second: of the tokens after the first.
        first_token_seconds: from sending the long prompt to its first token.
        others_cpu_seconds: CPU time that the other engines used meanwhile; should be 0.
    """

    engine: str
    number: int
    decode_tokens_per_second: float
    first_token_seconds: float
    others_cpu_seconds: float


def own_name(packing: str) -> str:
    """This engine with the weights packed so."""
    return f"{OWN} {packing}"


def decode_rate(*, num_tokens: int, seconds: float, seconds_of_first: float) -> float:
    """Tokens per second after the first, of a request and of the same one with one token.

    Raises:
        ValueError: more tokens took no longer than one.
    """
    if seconds <= seconds_of_first:
        raise ValueError(f"{num_tokens} tokens took {seconds} s, and one {seconds_of_first} s")
    return (num_tokens - 1) / (seconds - seconds_of_first)


def bandwidth_share(*, weight_bytes: int, tokens_per_second: float, read_rate: float) -> float:
    """Share of the memory's read rate that reading all weights for every token takes."""
    return weight_bytes * tokens_per_second / read_rate


def summarize_streams(
    turns: Sequence[StreamTurn], weight_bytes: Mapping[str, int], read_rate: float
) -> dict[str, dict[str, Any]]:
    """Each engine's spreads, the bytes of weights it reads for a token, and the share it uses.

    ``weight_bytes`` is by packing, which an engine's name ends with.
    """
    streams: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(turn.engine for turn in turns):
        own = [turn for turn in turns if turn.engine == name]
        rate = Spread.of([turn.decode_tokens_per_second for turn in own])
        num_bytes = weight_bytes[packing_of(name)]
        share = bandwidth_share(
            weight_bytes=num_bytes, tokens_per_second=rate.median, read_rate=read_rate
        )
        streams[name] = {
            "decode_tokens_per_second": asdict(rate),
            "first_token_seconds": asdict(Spread.of([turn.first_token_seconds for turn in own])),
            "weight_bytes": num_bytes,
            "bandwidth_share": share,
        }
    return streams


def packing_of(engine: str) -> str:
    """How an engine's weights are packed: the last word of its name."""
    return engine.split()[-1]


def stream_ratios(turns: Sequence[StreamTurn]) -> dict[str, dict[str, Any]]:
    """This engine against every other one with the same packing, round by round.

    "decode" is our tokens per second over theirs, "first_token" their seconds over ours.
    """
    by_turn = {(turn.engine, turn.number): turn for turn in turns}
    numbers = sorted({turn.number for turn in turns})
    ratios: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(turn.engine for turn in turns):
        own = own_name(packing_of(name))
        if name == own or (own, numbers[0]) not in by_turn:
            continue
        pairs = [(by_turn[own, number], by_turn[name, number]) for number in numbers]
        decode = [a.decode_tokens_per_second / b.decode_tokens_per_second for a, b in pairs]
        first = [b.first_token_seconds / a.first_token_seconds for a, b in pairs]
        ratios[name] = {
            "decode": asdict(Spread.of(decode)),
            "first_token": asdict(Spread.of(first)),
        }
    return ratios


def bench_numbers(
    benches: Mapping[str, Sequence[SingleRate]], turns: Sequence[StreamTurn]
) -> dict[str, dict[str, Any]]:
    """llama-bench's rates by file, and our decode rate over its, round by round."""
    numbers: dict[str, dict[str, Any]] = {}
    for name, rates in benches.items():
        own = [turn for turn in turns if turn.engine == own_name(packing_of(name))]
        decode = [
            ours.decode_tokens_per_second / theirs.decode
            for ours, theirs in zip(own, rates, strict=True)
        ]
        numbers[name] = {
            "prefill_tokens_per_second": asdict(Spread.of([one.prefill for one in rates])),
            "decode_tokens_per_second": asdict(Spread.of([one.decode for one in rates])),
            "decode_ratio": asdict(Spread.of(decode)),
        }
    return numbers

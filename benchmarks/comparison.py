"""What the rounds of several engines on one workload come to: medians and ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.workload import Workload
from fastgen_jax.bench.spread import Spread


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One engine's turn: the whole workload once.

    Attributes:
        engine: its name.
        number: counts from 1; every engine runs once in each round.
        seconds: wall time of generating, measured in the engine's process.
        total_tokens_per_second: prompt and generated tokens over the wall time.
        output_tokens_per_second: generated tokens alone over the same time.
        others_cpu_seconds: CPU time that the other engines used meanwhile; should be 0.
        load_average: of the machine when the turn began; the turns before count in it.
    """

    engine: str
    number: int
    seconds: float
    total_tokens_per_second: float
    output_tokens_per_second: float
    others_cpu_seconds: float
    load_average: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """An engine's rounds in short."""

    engine: str
    seconds: Spread
    total_tokens_per_second: Spread
    output_tokens_per_second: Spread


def make_round(
    workload: Workload,
    *,
    engine: str,
    number: int,
    seconds: float,
    others_cpu_seconds: float,
    load_average: float,
) -> Round:
    """The round with its rates."""
    num_outputs = workload.num_output_tokens
    return Round(
        engine=engine,
        number=number,
        seconds=seconds,
        total_tokens_per_second=(workload.num_prompt_tokens + num_outputs) / seconds,
        output_tokens_per_second=num_outputs / seconds,
        others_cpu_seconds=others_cpu_seconds,
        load_average=load_average,
    )


def summarize(rounds: Sequence[Round]) -> dict[str, Summary]:
    """A summary per engine, in order of appearance."""
    by_engine: dict[str, list[Round]] = {}
    for one in rounds:
        by_engine.setdefault(one.engine, []).append(one)
    return {
        engine: Summary(
            engine=engine,
            seconds=Spread.of([one.seconds for one in own]),
            total_tokens_per_second=Spread.of([one.total_tokens_per_second for one in own]),
            output_tokens_per_second=Spread.of([one.output_tokens_per_second for one in own]),
        )
        for engine, own in by_engine.items()
    }


def ratios(rounds: Sequence[Round], own: str) -> dict[str, Spread]:
    """How many times faster the own engine was than each other one, round by round.

    Neighbouring turns see the same machine, so the ratio is taken in each round and then
    summarized; the ratio of two medians would mix rounds.
    """
    seconds = {(one.engine, one.number): one.seconds for one in rounds}
    others = dict.fromkeys(one.engine for one in rounds if one.engine != own)
    numbers = sorted({one.number for one in rounds})
    return {
        other: Spread.of([seconds[other, n] / seconds[own, n] for n in numbers]) for other in others
    }


def check_lengths(engine: str, workload: Workload, outputs: Sequence[Sequence[int]]) -> None:
    """Nothing, when every output has exactly the tokens asked for.

    Raises:
        RuntimeError: names the engine, the request and both lengths.
    """
    for index, (request, output) in enumerate(zip(workload.requests, outputs, strict=True)):
        if len(output) != request.max_tokens:
            raise RuntimeError(
                f"{engine}, request {index}: {len(output)} tokens instead of {request.max_tokens}"
            )


def first_token_agreement(
    own: Sequence[Sequence[int]], others: Mapping[str, Sequence[Sequence[int]]]
) -> dict[str, float]:
    """Share of the requests whose first greedy token is the own engine's.

    Well below 1 means that two engines don't run the same model; a few differences are rounding.
    """
    return {
        name: sum(a[0] == b[0] for a, b in zip(own, outputs, strict=True)) / len(own)
        for name, outputs in others.items()
    }

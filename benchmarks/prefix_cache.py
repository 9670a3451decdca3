"""What the prefix cache saves: requests with a long common beginning, with the cache on and off.

Two of this engine's processes, equal but for the cache, take turns on the same requests: a shared
prefix and a few tokens of each request's own, one output token each, so that the time is that of
prefilling everything. The one with the cache has seen the prefix once, in a request before the
clock runs. In every round the requests' own tokens are new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.engine_commands import EngineSizes, own_command
from benchmarks.engine_turns import EngineTurns, note
from benchmarks.measurement import write_measurement
from benchmarks.workload import WorkloadRequest
from fastgen_jax.bench.machine import load_average
from fastgen_jax.bench.spread import Spread
from fastgen_jax.kv.layout import blocks_for

CACHED, PLAIN = "prefix cache on", "prefix cache off"
LOWEST_ID, VOCAB_SIZE = 100, 49152
BLOCK_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix:
    """Requests with a common beginning.

    Attributes:
        num_requests: how many there are.
        prefix_length: tokens that all share.
        own_length: tokens of each one's own, behind them.
        seed: same seed, same tokens.
    """

    num_requests: int = 32
    prefix_length: int = 1024
    own_length: int = 16
    seed: int = 11

    def requests(self, number: int, *, max_tokens: int) -> list[WorkloadRequest]:
        """The requests of a round; the prefix is that of every round, the rest is new."""
        prefix = self._draw(self.prefix_length, 0)
        return [
            WorkloadRequest(
                prompt_token_ids=prefix + self._draw(self.own_length, 1, number, index),
                max_tokens=max_tokens,
            )
            for index in range(self.num_requests)
        ]

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return self.num_requests * (self.prefix_length + self.own_length)

    def _draw(self, count: int, *key: int) -> tuple[int, ...]:
        rng = np.random.default_rng([self.seed, *key])
        return tuple(rng.integers(LOWEST_ID, VOCAB_SIZE, count).tolist())


def num_differing(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> int:
    """How many requests got other tokens in one answer than in the other."""
    return sum(list(x) != list(y) for x, y in zip(a, b, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCache:
    """Runs both engines in turns, prints the ratio, writes every number.

    Ends with an error where any request's tokens differ between the two.
    """

    model: str = "smollm2-135m-instruct"
    """A built-in name, a directory, a .gguf file or a Hub id."""
    dtype: str = "bfloat16"
    """"float32" or "bfloat16"."""
    shared: SharedPrefix = SharedPrefix()
    """The requests."""
    rounds: int = 3
    """Measured turns of each engine."""
    check_tokens: int = 16
    """Output tokens of the round whose tokens are compared, which isn't timed."""
    quick: bool = False
    """4 requests with a prefix of 128, 1 round: does it work at all?"""
    log_dir: Path | None = None
    """Where the engines' logs go; None drops them."""
    out: Path = Path("benchmarks/results/prefix_cache.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Measure, print, write; exit status 1 where tokens differ."""
        options = self
        if self.quick:
            shared = replace(self.shared, num_requests=4, prefix_length=128)
            options = replace(self, shared=shared, rounds=1)
        load_at_start = load_average()
        shared = options.shared
        seconds: dict[str, list[float]] = {CACHED: [], PLAIN: []}
        differing: list[int] = []
        with EngineTurns(options.commands(), log_dir=options.log_dir) as engines:
            first = shared.requests(options.rounds + 1, max_tokens=1)[:1]
            for name in engines.names:
                engines.run(name, first)
            for number in range(1, options.rounds + 1):
                requests = shared.requests(number, max_tokens=1)
                turns = {name: engines.run(name, requests) for name in (CACHED, PLAIN)}
                for name, turn in turns.items():
                    seconds[name].append(turn.seconds)
                    note(f"round {number} {name}: {turn.seconds:.2f} s")
                differing.append(num_differing(*(_tokens(turns[name]) for name in turns)))
            requests = shared.requests(0, max_tokens=options.check_tokens)
            checks = [_tokens(engines.run(name, requests)) for name in (CACHED, PLAIN)]
            differing.append(num_differing(*checks))
            startup = engines.startup
        ratio = Spread.of([off / on for on, off in zip(*seconds.values(), strict=True)])
        print(f"{ratio.median:.2f} times less prefill time ({ratio.low:.2f} to {ratio.high:.2f})")
        print(
            f"requests with other tokens: {differing[:-1]} of {shared.num_requests} with 1 token,"
            f" {differing[-1]} with {options.check_tokens}"
        )
        write_measurement(
            self.out,
            settings=options.settings(),
            load_at_start=load_at_start,
            numbers={
                "startup": startup,
                "num_prompt_tokens": shared.num_prompt_tokens,
                "rounds": seconds,
                "seconds": {name: asdict(Spread.of(all_)) for name, all_ in seconds.items()},
                "times_less": asdict(ratio),
                "num_requests_with_other_tokens": differing,
            },
        )
        if any(differing):
            raise SystemExit("the prefix cache changed tokens")

    def commands(self) -> dict[str, list[str]]:
        """The same engine twice, with a pool that holds all requests at once in both."""
        shared = self.shared
        length = shared.prefix_length + shared.own_length + self.check_tokens
        blocks = (shared.num_requests + 1) * blocks_for(length, BLOCK_SIZE) + 1
        sizes = EngineSizes(max_model_len=length, max_num_seqs=shared.num_requests)

        def command(prefix_caching: bool) -> list[str]:
            return own_command(
                self.model,
                sizes,
                dtype=self.dtype,
                num_kv_blocks=blocks,
                prefix_caching=prefix_caching,
            )

        return {CACHED: command(True), PLAIN: command(False)}

    def settings(self) -> dict[str, Any]:
        """What was asked for, without places on this machine."""
        names = ("dtype", "rounds", "check_tokens", "quick")
        return {**{name: getattr(self, name) for name in names}, "shared": asdict(self.shared)}


def _tokens(turn: Any) -> list[list[int]]:
    return turn.answer["output_token_ids"]


if __name__ == "__main__":
    tyro.cli(PrefixCache, description=__doc__).main()

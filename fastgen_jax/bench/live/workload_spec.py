"""A workload as settings: from a TOML file, with options on top, to the object that sends it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from fastgen_jax.config import read_toml
from fastgen_jax.errors import ConfigError
from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.sim.workloads.closed_loop import ClosedLoop
from fastgen_jax.sim.workloads.conversations import Conversations
from fastgen_jax.sim.workloads.lengths import NormalLengths, UniformLengths
from fastgen_jax.sim.workloads.mix import RequestMix
from fastgen_jax.sim.workloads.open_loop import OpenLoop
from fastgen_jax.sim.workloads.prompts import SharedPrefixPrompts, UniquePrompts
from fastgen_jax.sim.workloads.trace import read_trace
from fastgen_jax.sim.workloads.workload import Replay, Workload

KINDS = ("closed_loop", "open_loop", "conversations", "at_once", "trace")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """Who sends what, when; lengths are in tokens, times in seconds.

    Attributes:
        kind: "closed_loop", "open_loop", "conversations", "at_once" (all requests at the start) or
            "trace".
        requests: how many in all; of conversations, how many of these.
        clients: of a closed loop.
        start_spread: its clients begin at random times within so many seconds.
        rate: requests per second of an open loop, or new conversations.
        variation: of the open loop's gaps: 1 is Poisson, above are bursts, 0 is regular.
        prompt_tokens: mean length of a prompt, of its own part where prefixes are shared.
        output_tokens: mean length of an output.
        deviation: standard deviation of both, relative to the mean.
        most_prompt_tokens, most_output_tokens: longer ones are cut to it; None: no limit.
        prefixes: different beginnings that prompts share; 0: they share nothing.
        prefix_tokens: their length.
        least_turns, most_turns: of a conversation.
        turn_tokens: mean of what a person adds in each turn after the first.
        think_seconds: mean time before that.
        max_tokens: what requests ask for; the client ends them earlier. None: exactly what comes.
        ttft, tpot: targets of every request, for goodput; None: none.
        seed: same seed, same requests.
        trace: the file of a trace.
    """

    kind: str = "closed_loop"
    requests: int = 32
    clients: int = 4
    start_spread: float = 0.0
    rate: float = 1.0
    variation: float = 1.0
    prompt_tokens: float = 256
    output_tokens: float = 32
    deviation: float = 0.3
    most_prompt_tokens: int | None = None
    most_output_tokens: int | None = None
    prefixes: int = 0
    prefix_tokens: int = 0
    least_turns: int = 1
    most_turns: int = 4
    turn_tokens: float = 32
    think_seconds: float = 1.0
    max_tokens: int | None = None
    ttft: float | None = None
    tpot: float | None = None
    seed: int = 42
    trace: str | None = None

    def __post_init__(self) -> None:
        """Refuse an unknown kind, and a trace without a file."""
        if self.kind not in KINDS:
            raise ConfigError(
                "is no workload",
                field="kind",
                value=self.kind,
                remedy="use one of " + ", ".join(KINDS),
            )
        if (self.kind == "trace") != (self.trace is not None):
            raise ConfigError(
                f"and kind={self.kind!r} don't go together",
                field="trace",
                value=self.trace,
                remedy='give a file and kind "trace", or neither',
            )
        if self.requests < 1:
            raise ConfigError("must be at least 1", field="requests", value=self.requests)
        if bool(self.prefixes) != bool(self.prefix_tokens):
            raise ConfigError(
                "must both be above 0, or both 0",
                field="prefixes, prefix_tokens",
                value=(self.prefixes, self.prefix_tokens),
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> WorkloadSpec:
        """The spec of names and values; an unknown name or a value of another type is refused."""
        known = {f.name: str(f.type) for f in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise ConfigError(
                    "is no setting of a workload",
                    field=name,
                    value=value,
                    remedy="known ones are " + ", ".join(known),
                )
            if not _fits(value, known[name]):
                raise ConfigError(f"must be {known[name]}", field=name, value=value)
        return cls(**values)  # pyright: ignore[reportArgumentType]  # checked above

    @classmethod
    def from_toml(cls, path: str | Path) -> WorkloadSpec:
        """The spec of a TOML file such as those in ``configs/bench/``."""
        values = read_toml(path, field="workload")
        return cls.from_dict(values)

    def build(self) -> Workload:
        """The workload, at its beginning."""
        if self.kind == "trace":
            assert self.trace is not None
            return read_trace(self.trace)
        mix = self._mix()
        if self.kind == "closed_loop":
            return ClosedLoop(
                num_clients=self.clients,
                num_requests=self.requests,
                mix=mix,
                seed=self.seed,
                start_spread=self.start_spread,
            )
        if self.kind == "open_loop":
            return OpenLoop(
                rate=self.rate,
                num_requests=self.requests,
                mix=mix,
                variation=self.variation,
                seed=self.seed,
            )
        if self.kind == "at_once":
            rng = np.random.default_rng(self.seed)
            return Replay(mix.draw(number, rng, time=0.0) for number in range(self.requests))
        return Conversations(
            rate=self.rate,
            num_conversations=self.requests,
            opening=mix,
            turns=UniformLengths(self.least_turns, self.most_turns),
            answers=NormalLengths(mean=self.turn_tokens, deviation=self.deviation),
            think_seconds=self.think_seconds,
            seed=self.seed,
        )

    def _mix(self) -> RequestMix:
        own = NormalLengths(
            mean=self.prompt_tokens, deviation=self.deviation, most=self.most_prompt_tokens
        )
        prompts = UniquePrompts(own)
        if self.prefixes:
            prompts = SharedPrefixPrompts(
                num_prefixes=self.prefixes, prefix_tokens=self.prefix_tokens, own=own
            )
        return RequestMix(
            prompts=prompts,
            outputs=NormalLengths(
                mean=self.output_tokens, deviation=self.deviation, most=self.most_output_tokens
            ),
            max_tokens=self.max_tokens,
            targets=LatencyTargets(ttft=self.ttft, tpot=self.tpot),
        )


def _fits(value: object, declared: str) -> bool:
    """Whether a value has one of a field's declared types; an int is a float too."""
    types = {"int": (int,), "float": (int, float), "str": (str,), "None": (type(None),)}
    allowed = tuple(one for name in declared.split(" | ") for one in types[name])
    return isinstance(value, allowed) and not isinstance(value, bool)

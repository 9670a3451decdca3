"""Measuring points one after the other; what is measured is written at once."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tqdm import tqdm

from fastgen_jax.bench.commands.options import LoadOptions
from fastgen_jax.bench.commands.target import Target, check_target, open_target
from fastgen_jax.bench.exchange import Exchange
from fastgen_jax.bench.live.generator import LoadGenerator
from fastgen_jax.bench.live.workload_spec import WorkloadSpec
from fastgen_jax.bench.machine import load_average, machine_facts
from fastgen_jax.bench.results import BenchResults, Point
from fastgen_jax.config import EngineConfig
from fastgen_jax.errors import ConfigError

_WARM_UP_SALT = 1 << 32  # beyond the number of any point


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A load to measure.

    Attributes:
        parameters: what sets it apart from the others.
        spec: the load.
        engine: settings of the engine that it changes.
    """

    parameters: Mapping[str, Any]
    spec: WorkloadSpec
    engine: Mapping[str, Any] = field(default_factory=dict)


def measure(command: str, options: LoadOptions, cases: Sequence[Case]) -> BenchResults:
    """Every case in every round, in turns; what is measured so far is always in the file.

    Raises:
        FastGenError: the target can't be opened, or fails a warm-up request.
    """
    options.output.check()
    options.runs.check()
    check_target(options.target, options.engine)
    return asyncio.run(_Measurement(command, options).run(cases))


class _Measurement:
    def __init__(self, command: str, options: LoadOptions) -> None:
        self._options = options
        self._config = replace(options.engine.engine_config(), show_progress=sys.stderr.isatty())
        load = load_average()
        target = options.target
        self._results = BenchResults(
            command=command,
            label=options.output.label or target.url or target.model,
            machine=asdict(machine_facts()),
            load_average={"start": load, "end": load},
            target={},
            options={"runs": asdict(options.runs)},
            token_rates=options.runs.token_rates,
            prompt_rate=options.runs.prompt_rate,
            num_warm_up_requests=options.runs.warm_up,
        )
        self._target: Target | None = None
        self._opened_with: Mapping[str, Any] | None = None

    async def run(self, cases: Sequence[Case]) -> BenchResults:
        try:
            for number in range(self._options.runs.rounds):
                for case in cases:
                    target = await self._open(case)
                    point = await self._point(target, case, number)
                    self._keep(target, point)
        finally:
            await self._close()
        return self._results

    async def _open(self, case: Case) -> Target:
        """The target with the case's settings: the one that is open, where it has them."""
        if self._target is None or self._opened_with != case.engine:
            await self._close()
            config = EngineConfig.from_dict(_settings(self._config) | dict(case.engine))
            self._target = await open_target(self._options.target, config)
            self._opened_with = case.engine
            await self._warm_up(self._target, case.spec)
        return self._target

    async def _close(self) -> None:
        target, self._target = self._target, None
        if target is not None:
            await target.transport.close()

    async def _warm_up(self, target: Target, spec: WorkloadSpec) -> None:
        count = self._options.runs.warm_up
        if not count:
            return
        if spec.kind in ("trace", "conversations"):
            spec = replace(spec, kind="closed_loop", trace=None)
        spec = replace(spec, kind="closed_loop", clients=2, requests=count, start_spread=0.0)
        tokens = target.tokens(_WARM_UP_SALT + len(self._results.points))
        exchanges = await LoadGenerator(spec.build(), target.transport, tokens).run()
        for exchange in exchanges:
            if exchange.error is not None:
                raise ConfigError(
                    f"a warm-up request failed: {exchange.error}",
                    field="model" if self._options.target.url is None else "url",
                    value=self._options.target.url or self._options.target.model,
                    remedy="see that single requests work; --warm-up 0 measures all the same",
                )

    async def _point(self, target: Target, case: Case, number: int) -> Point:
        tokens = target.tokens(len(self._results.points))
        workload, transport = case.spec.build(), target.transport
        words = ", ".join(f"{name} {value}" for name, value in case.parameters.items())
        total = None if case.spec.kind in ("conversations", "trace") else case.spec.requests
        before = await transport.counters()
        start = time.monotonic()
        with tqdm(total=total, desc=words, unit="request", leave=False, disable=None) as bar:

            def count(_: Exchange) -> None:
                bar.update()

            generator = LoadGenerator(workload, transport, tokens, on_end=count)
            exchanges = await generator.run()
        seconds = time.monotonic() - start
        after = await transport.counters()
        self._warn(exchanges, words)
        return Point(
            parameters=dict(case.parameters),
            round=number,
            workload=asdict(case.spec),
            seconds=seconds,
            exchanges=exchanges,
            engine=None if before is None or after is None else _difference(before, after),
        )

    def _keep(self, target: Target, point: Point) -> None:
        load = {"start": self._results.load_average["start"], "end": load_average()}
        self._results = replace(
            self._results,
            target=target.transport.describe(),
            points=(*self._results.points, point),
            load_average=load,
        )
        if self._options.output.json is not None:
            self._results.save(self._options.output.json)

    def _warn(self, exchanges: Sequence[Exchange], words: str) -> None:
        """Say what makes a point doubtful, on standard error."""
        failed = [exchange.error for exchange in exchanges if exchange.error is not None]
        if failed:
            _note(f"{words}: {len(failed)} of {len(exchanges)} requests failed: {failed[0]}")
        num_short = sum(exchange.is_short for exchange in exchanges)
        if num_short:
            _note(
                f"{words}: {num_short} of {len(exchanges)} answers ended early: the server doesn't "
                "heed ignore_eos, and numbers of runs with other lengths can't be compared"
            )
        late = sorted(exchange.lateness for exchange in exchanges)
        if late and late[math.ceil(0.99 * len(late)) - 1] > self._options.runs.late_limit:
            _note(
                f"{words}: one request in a hundred was sent more than "
                f"{1e3 * self._options.runs.late_limit:.0f} ms late, the worst by "
                f"{1e3 * late[-1]:.0f} ms: the load generator couldn't keep up, so the load was "
                "not what was asked for"
            )


def _settings(config: EngineConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in EngineConfig.__dataclass_fields__}


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What was counted between the two; counts by name too."""
    found: dict[str, Any] = {}
    for name, value in after.items():
        if isinstance(value, Mapping):
            found[name] = {key: one - before[name].get(key, 0) for key, one in value.items()}
        else:
            found[name] = value - before[name]
    return found


def _note(words: str) -> None:
    tqdm.write(f"fastgen: warning: {words}", file=sys.stderr)

"""The commands that send requests: throughput, latency, load and sweep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastgen_jax.bench.commands.options import LoadOptions
from fastgen_jax.errors import ConfigError

if TYPE_CHECKING:
    from fastgen_jax.bench.commands.measure import Case
    from fastgen_jax.bench.live.workload_spec import WorkloadSpec


@dataclass(frozen=True, kw_only=True)
class Throughput(LoadOptions):
    """Offline: all requests at once; requests/s, tokens/s, and how full the steps were."""

    def run(self) -> None:
        """Measure, print, write, draw."""
        from fastgen_jax.bench.commands.measure import Case

        spec = replace(self.load.spec(), kind="at_once", trace=None)
        _run("throughput", self, [Case(parameters={"requests": spec.requests}, spec=spec)])


@dataclass(frozen=True, kw_only=True)
class Latency(LoadOptions):
    """One request after another: time to the first token, per token, percentiles."""

    batch_size: int = 1
    """Requests under way at a time."""

    def run(self) -> None:
        """Measure, print, write, draw."""
        from fastgen_jax.bench.commands.measure import Case

        _positive("batch_size", self.batch_size)
        spec = self.load.spec({"requests": 16})
        spec = replace(spec, kind="closed_loop", clients=self.batch_size, trace=None)
        _run("latency", self, [Case(parameters={"clients": self.batch_size}, spec=spec)])


@dataclass(frozen=True, kw_only=True)
class Load(LoadOptions):
    """One load, of so many clients or requests per second: latencies, and what was good enough."""

    def run(self) -> None:
        """Measure, print, write, draw."""
        from fastgen_jax.bench.commands.measure import Case

        spec = self.load.spec()
        _run("load", self, [Case(parameters=_parameters(spec), spec=spec)])


@dataclass(frozen=True, kw_only=True)
class Sweep(LoadOptions):
    """Loads one after the other, with several policies or numbers of devices: curves."""

    sweep_clients: tuple[int, ...] = ()
    """Clients of a closed loop at each point; by default 1 2 4 8 16."""
    sweep_rates: tuple[float, ...] = ()
    """Requests per second at each point, in place of clients."""
    policies: tuple[str, ...] = ()
    """Repeat the points with each of these policies."""
    tensor_parallel_sizes: tuple[int, ...] = ()
    """Repeat the points with the model over so many devices each."""

    def run(self) -> None:
        """Measure, print, write, draw."""
        if self.sweep_clients and self.sweep_rates:
            raise ConfigError(
                "goes with --sweep-rates no more than with --rate",
                field="sweep_clients",
                value=self.sweep_clients,
                remedy="sweep one of the two",
            )
        if self.target.url is not None and (self.policies or self.tensor_parallel_sizes):
            raise ConfigError(
                "a server's settings can't be swept from here",
                field="url",
                value=self.target.url,
                remedy="measure each with a --json file and lay them over each other with "
                "`fastgen bench plot`",
            )
        for number in (*self.sweep_clients, *self.sweep_rates, *self.tensor_parallel_sizes):
            _positive("sweep", number)
        _run("sweep", self, list(self._cases()))

    def _cases(self) -> Iterator[Case]:
        from fastgen_jax.bench.commands.measure import Case

        for engine in self._engines():
            for spec in self._specs():
                yield Case(parameters=_parameters(spec) | engine, spec=spec, engine=engine)

    def _engines(self) -> list[dict[str, Any]]:
        """Engines to build one after the other."""
        policies = [{"policy": one} for one in self.policies] or [{}]
        sizes = [{"tensor_parallel_size": one} for one in self.tensor_parallel_sizes] or [{}]
        return [size | policy for size in sizes for policy in policies]

    def _specs(self) -> list[WorkloadSpec]:
        base = self.load.spec()
        if self.sweep_rates:
            kind = "conversations" if base.kind == "conversations" else "open_loop"
            return [replace(base, kind=kind, rate=one, trace=None) for one in self.sweep_rates]
        if base.kind in ("open_loop", "conversations") and not self.sweep_clients:
            raise ConfigError(
                "has a rate, and none are given to sweep",
                field="kind",
                value=base.kind,
                remedy="give --sweep-rates, or --sweep-clients for a closed loop",
            )
        clients = self.sweep_clients or (1, 2, 4, 8, 16)
        return [replace(base, kind="closed_loop", clients=one, trace=None) for one in clients]


def _run(command: str, options: LoadOptions, cases: list[Case]) -> None:
    from fastgen_jax.bench.commands.measure import measure
    from fastgen_jax.bench.commands.tables import print_results

    results = measure(command, options, cases)
    print_results(results)
    if options.output.plot is not None:
        from fastgen_jax.bench.plots.draw import draw_results

        for path in draw_results([results], options.output.plot):
            print(path)


def _parameters(spec: WorkloadSpec) -> dict[str, Any]:
    """What names a load."""
    if spec.kind == "closed_loop":
        return {"clients": spec.clients}
    if spec.kind in ("open_loop", "conversations"):
        return {"rate": spec.rate}
    return {"load": spec.kind.replace("_", " ")}


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError("must be above 0", field=name, value=value)

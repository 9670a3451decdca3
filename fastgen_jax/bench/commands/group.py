"""The commands of ``fastgen bench``; importing it loads no numpy, jax or plots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from fastgen_jax.bench.commands.forward import Forward
from fastgen_jax.bench.commands.loads import Latency, Load, Sweep, Throughput
from fastgen_jax.bench.commands.plot import Plot

BenchCommand = (
    Annotated[Throughput, tyro.conf.subcommand("throughput")]
    | Annotated[Latency, tyro.conf.subcommand("latency")]
    | Annotated[Load, tyro.conf.subcommand("load")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Forward, tyro.conf.subcommand("forward")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure this engine, or a server, under load; draw the results."""

    command: tyro.conf.OmitSubcommandPrefixes[BenchCommand]
    """What to measure."""

    def run(self) -> None:
        """Do it."""
        self.command.run()

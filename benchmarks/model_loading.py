"""Seconds and host memory of loading a model's weights, by file format, form and devices.

Each loading is a process of its own, and all kinds take turns. The files come from the page cache.
Memory is what was resident at the worst moment, less what was before, less the weights: on a CPU
they lie in the same memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.engine_turns import note
from benchmarks.load_once import Form, Load
from benchmarks.made_up_llama import LlamaSizes, write_llama
from benchmarks.measurement import write_measurement
from fastgen_jax.bench.machine import load_average
from fastgen_jax.bench.spread import Spread
from fastgen_jax.conversion import convert

MADE_UP = LlamaSizes(
    layers=8,
    width=2048,
    feed_forward=5632,
    heads=32,
    kv_heads=8,
    head_dim=64,
    vocabulary=32000,
)
QUICK = LlamaSizes(
    layers=2, width=256, feed_forward=512, heads=4, kv_heads=4, head_dim=64, vocabulary=1024
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is loaded how.

    Attributes:
        model: its name in the table.
        format: of the files.
        path: where they are.
        form: "packed" for native kernels, or "dense".
        devices: that share the weights.
    """

    model: str
    format: str
    path: Path
    form: Form
    devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoading:
    """Loads in turns, prints the medians, writes every number."""

    hf_model: Path
    """A Hugging Face directory with safetensors."""
    gguf_model: Path
    """The same model as a .gguf file."""
    dtype: str = "bfloat16"
    """Of the loaded weights."""
    tensor: int = 3
    """Devices that share the model; must divide its kv heads."""
    rounds: int = 5
    """Loadings of each kind."""
    quick: bool = False
    """1 loading of each kind, and a small made-up model: does it work at all?"""
    out: Path = Path("benchmarks/results/model_loading.json")
    """Where the numbers go."""

    def main(self) -> None:
        """Measure, print, write."""
        load_at_start = load_average()
        rounds = 1 if self.quick else self.rounds
        with tempfile.TemporaryDirectory() as scratch:
            cases = self._prepare(Path(scratch))
            loads: list[list[Load]] = [[] for _ in cases]
            for _ in range(rounds):
                for case, done in zip(cases, loads, strict=True):
                    done.append(load_in_process(case, self.dtype))
        summaries = [summary(case, done) for case, done in zip(cases, loads, strict=True)]
        for one in summaries:
            note(
                f"{one['model']} {one['format']} {one['form']} on {one['devices']}: "
                f"{one['seconds']['median']:.2f} s, beside the weights "
                f"{one['beside_weights_bytes']['median'] / 1e6:.0f} MB"
            )
        write_measurement(
            self.out,
            settings={"dtype": self.dtype, "rounds": rounds, "quick": self.quick},
            load_at_start=load_at_start,
            numbers={
                "summaries": summaries,
                "loads": [[asdict(load) for load in done] for done in loads],
            },
        )

    def _prepare(self, scratch: Path) -> list[Case]:
        """The cases, after writing the files that are missing."""
        own = {"safetensors": self.hf_model, "gguf": self.gguf_model, "orbax": scratch / "own"}
        convert(self.hf_model, own["orbax"], show_progress=False)
        made_up = scratch / "made_up"
        made_up.mkdir()
        write_llama(made_up, QUICK if self.quick else MADE_UP, dtype=self.dtype)
        larger = {"safetensors": made_up, "orbax": scratch / "larger"}
        convert(made_up, larger["orbax"], show_progress=False)
        name = self.gguf_model.name.partition(".")[0]
        forms: list[tuple[Form, int]] = [("packed", 1), ("dense", 1), ("dense", self.tensor)]
        cases = [
            Case(model=name, format=format, path=path, form=form, devices=devices)
            for form, devices in forms
            for format, path in own.items()
        ]
        cases += [
            Case(model="made up", format=format, path=path, form="dense", devices=devices)
            for devices in (1, 4)
            for format, path in larger.items()
        ]
        return cases


def load_in_process(case: Case, dtype: str) -> Load:
    """One loading, in a process that has the devices of the case."""
    command = [sys.executable, "-m", "benchmarks.load_once", "--model", str(case.path)]
    command += ["--dtype", dtype, "--form", case.form, "--tensor", str(case.devices)]
    devices = f"--xla_force_host_platform_device_count={case.devices}"
    environment = os.environ | {"XLA_FLAGS": devices, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"a loading of {case.path.name} failed: {done.stderr[-2000:]}")
    return Load(**json.loads(done.stdout.splitlines()[-1]))


def summary(case: Case, loads: Sequence[Load]) -> dict[str, Any]:
    """A case's numbers; the promise is the largest tensor and one device's share of it."""
    last = loads[-1]
    promised = last.largest_bytes + last.largest_bytes // case.devices
    return {
        "model": case.model,
        "format": case.format,
        "form": case.form,
        "devices": case.devices,
        "seconds": asdict(Spread.of([load.seconds for load in loads])),
        "import_seconds": asdict(Spread.of([load.import_seconds for load in loads])),
        "weight_bytes": last.weight_bytes,
        "beside_weights_bytes": asdict(
            Spread.of([load.peak_bytes - load.weight_bytes for load in loads])
        ),
        "largest_and_share_bytes": promised,
    }


if __name__ == "__main__":
    tyro.cli(ModelLoading, description=__doc__).main()

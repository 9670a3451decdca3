"""How a model's steps scale over devices: which meshes there are, speedups, efficiency, a plot."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.engine_turns import note
from fastgen_jax.errors import ConfigError
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.parallel.division import check_divisible, fitting_tensor_sizes


class MeshSize(NamedTuple):
    """Devices along each axis of a mesh."""

    tensor: int
    expert: int

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return self.tensor * self.expert

    def __str__(self) -> str:
        return f"TP {self.tensor}" + (f" x EP {self.expert}" if self.expert > 1 else "")


def fitting_meshes(
    model: ModelConfig,
    *,
    tensor_sizes: Sequence[int] | None,
    expert_sizes: Sequence[int],
    num_devices: int,
) -> list[MeshSize]:
    """Every mesh of the sizes that the model and the machine allow, by their number of devices.

    Args:
        model: shape of the decoder.
        tensor_sizes: to be tried; None for all powers of two.
        expert_sizes: to be tried with each of them.
        num_devices: of the machine.

    Raises:
        ConfigError: a size that was asked for is in no mesh that fits; says which ones would.
    """
    powers = [2**i for i in range(num_devices.bit_length()) if 2**i <= num_devices]
    tried = itertools.product(tensor_sizes or powers, expert_sizes)
    found: list[MeshSize] = []
    obstacles: dict[MeshSize, ConfigError] = {}
    for mesh in (MeshSize(*sizes) for sizes in tried):
        try:
            check_divisible(model, *mesh)
            if mesh.devices > num_devices:
                raise _too_many(model, mesh, num_devices)
        except ConfigError as error:
            obstacles[mesh] = error
        else:
            found.append(mesh)
    for mesh, error in obstacles.items():
        is_tensor_lost = tensor_sizes is not None and mesh.tensor not in {m.tensor for m in found}
        if is_tensor_lost or mesh.expert not in {m.expert for m in found}:
            raise error
        note(f"left out {mesh}: {error}")
    return sorted(set(found), key=lambda mesh: (mesh.devices, mesh.expert))


def _too_many(model: ModelConfig, mesh: MeshSize, num_devices: int) -> ConfigError:
    sizes = fitting_tensor_sizes(model, mesh.expert)
    fitting = [size for size in sizes if size * mesh.expert <= num_devices]
    return ConfigError(
        f"{mesh} takes {mesh.devices} devices, and jax finds {num_devices}",
        field="sizes",
        value=mesh.tensor,
        remedy=("use one of " + ", ".join(map(str, fitting)) if fitting else "use a smaller EP")
        + "; on a CPU, --cpu-devices makes virtual ones",
    )


def scaling_entries(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The cells with their ``speedup`` and ``efficiency``, each against the fewest devices.

    A cell has "rows" and "context" (both 0 for prefill), "tensor", "expert", "devices" and
    "tokens_per_second". The efficiency is the speedup over how many times as many devices there
    are: 1 where twice the devices are twice as fast.
    """
    first: dict[tuple[int, int], Mapping[str, Any]] = {}
    for cell in sorted(cells, key=lambda cell: (cell["devices"], cell["expert"])):
        first.setdefault((cell["rows"], cell["context"]), cell)
    entries = []
    for cell in cells:
        base = first[cell["rows"], cell["context"]]
        speedup = cell["tokens_per_second"] / base["tokens_per_second"]
        efficiency = speedup * base["devices"] / cell["devices"]
        entries.append({**cell, "speedup": speedup, "efficiency": efficiency})
    return entries


def scaling_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """A line per cell."""
    head = f"{'mesh':<12}{'devices':>8}{'rows':>6}{'context':>9}{'step ms':>10}"
    lines = [f"{head}{'tokens/s':>11}{'speedup':>9}{'efficiency':>12}"]
    for one in entries:
        place = f"{one['rows']:6}{one['context']:9}" if one["rows"] else f"{'prefill':>15}"
        step = f"{1e3 * one['seconds']['median']:10.2f}"
        lines.append(
            f"{MeshSize(one['tensor'], one['expert'])!s:<12}{one['devices']:8}{place}{step}"
            f"{one['tokens_per_second']:11.1f}{one['speedup']:9.2f}{one['efficiency']:12.2f}"
        )
    return "\n".join(lines)


def draw_scaling(entries: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Step time, tokens per second, prefill and efficiency against devices; dashed is ideal.

    A line for each number of rows, context and expert size; nothing without matplotlib but a note.
    """
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError:
        note(f"no plot at {path}: matplotlib isn't installed; it comes with fastgen-jax[plan]")
        return
    decodes = [one for one in entries if one["rows"]]
    prefills = [one for one in entries if not one["rows"]]
    figure = Figure(figsize=(11, 8), layout="constrained")
    (steps, rates), (prompts, efficiency) = figure.subplots(2, 2)
    series = sorted({_series(one) for one in entries})
    colors = {key: f"C{index}" for index, key in enumerate(series)}
    _lines(steps, decodes, colors, lambda one: 1e3 * one["seconds"]["median"], ideal=1)
    _lines(rates, decodes, colors, lambda one: one["tokens_per_second"], ideal=-1)
    _lines(prompts, prefills, colors, lambda one: one["tokens_per_second"], ideal=-1)
    _lines(efficiency, entries, colors, lambda one: one["efficiency"], ideal=-1)
    steps.set(title="decode step", ylabel="milliseconds")
    rates.set(title="decoding", ylabel="tokens per second")
    prompts.set(title="prefill", ylabel="tokens per second")
    efficiency.set(title="scaling efficiency", ylabel="speedup over devices")
    efficiency.set_ylim(bottom=0)
    for axes in (steps, rates, prompts, efficiency):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({one["devices"] for one in entries}))
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_xlabel("devices")
    for axes in (steps, rates, prompts):
        axes.set_yscale("log")
    handles, labels = efficiency.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"{title} (dashed: ideal)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _lines(
    axes: Any,
    entries: Sequence[Mapping[str, Any]],
    colors: Mapping[tuple[bool, int, int, int], str],
    value: Callable[[Mapping[str, Any]], float],
    *,
    ideal: int,
) -> None:
    """A line per series, and dashed the value times ``efficiency ** ideal``: as if that were 1."""
    for key in sorted({_series(one) for one in entries}):
        own = sorted((one for one in entries if _series(one) == key), key=lambda x: x["devices"])
        devices = [one["devices"] for one in own]
        axes.plot(devices, [value(one) for one in own], colors[key], marker="o", label=_label(key))
        best = [value(one) * one["efficiency"] ** ideal for one in own]
        axes.plot(devices, best, colors[key], linestyle="--", linewidth=0.8)


def _series(entry: Mapping[str, Any]) -> tuple[bool, int, int, int]:
    return not entry["rows"], entry["rows"], entry["context"], entry["expert"]


def _label(key: tuple[bool, int, int, int]) -> str:
    is_prefill, rows, context, expert = key
    name = "prefill" if is_prefill else f"{rows} x {context} tokens"
    return name + (f", EP {expert}" if expert > 1 else "")

"""Where the device's memory goes: planned from the compiled step, printed, never guessed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psutil

from fastgen_jax.errors import ConfigError
from fastgen_jax.markup import element, table
from fastgen_jax.runtime.compile import CompiledProgram


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes by use on one device.

    Attributes:
        available: the device's memory, less what was in use when the engine started; all of the
            host's memory on a CPU.
        weights: all parameters.
        row_state: settings and token histories of the device rows.
        step: the largest temporary space of any compiled program, and its inputs and results.
        kv_cache: all blocks.
        num_blocks: blocks, the null block included.
        block_size: tokens of a block.
        num_devices: devices that share the model; all sizes are those of one.
        kv_head_repeats: devices that have the same kv head, and its part of the cache.
    """

    available: int
    weights: int
    row_state: int
    step: int
    kv_cache: int
    num_blocks: int
    block_size: int
    num_devices: int = 1
    kv_head_repeats: int = 1

    @property
    def total(self) -> int:
        """What the engine takes at its peak."""
        return self.weights + self.row_state + self.step + self.kv_cache

    @property
    def fits(self) -> bool:
        """True when the peak is within what was available."""
        return self.total <= self.available

    def __str__(self) -> str:
        """A table in MiB."""
        body = [f"  {name:<17}{_mib(size)} MiB  {note}".rstrip() for name, size, note in self._rows]
        return "\n".join([self._title, *body])

    def _repr_html_(self) -> str:
        rows = [(name, f"{_mib(size)} MiB", note) for name, size, note in self._rows]
        return element("div", element("b", self._title), table(rows))

    @property
    def _title(self) -> str:
        of_each = f" of each of {self.num_devices} devices" if self.num_devices > 1 else ""
        return f"Memory plan{of_each}"

    @property
    def _rows(self) -> list[tuple[str, int, str]]:
        """Name, bytes and note of each use."""
        tokens = (self.num_blocks - 1) * self.block_size
        note = f"{self.num_blocks} blocks of {self.block_size} tokens: {tokens:,} tokens"
        if self.kv_head_repeats > 1:
            note += f"; each kv head is on {self.kv_head_repeats} devices"
        return [
            ("weights", self.weights, ""),
            ("row state", self.row_state, ""),
            ("step (temporary)", self.step, ""),
            ("KV cache", self.kv_cache, note),
            ("total", self.total, f"of {_mib(self.available).strip()} MiB available"),
        ]


def available_bytes(device: Any) -> int:
    """Memory that an engine on the device can plan with.

    On a CPU that is all of the host's: what happens to be free changes by the minute, and with it
    the pool's size would change, and every program would have to be compiled anew.
    """
    if device.platform == "cpu":
        return psutil.virtual_memory().total
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        raise ConfigError(
            f"the device {device} doesn't tell its memory",
            field="num_kv_blocks",
            value=None,
            remedy="set num_kv_blocks",
        )
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def step_bytes(programs: Iterable[CompiledProgram]) -> int:
    """The most temporary and fresh output space that any of the programs takes.

    From the compiler's own ``memory_analysis``; the worst request is inside the program, so
    nothing at run time exceeds it.
    """
    sizes = [0]
    for program in programs:
        analysis = program.executable.memory_analysis()
        if analysis is not None:
            fresh = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
            sizes.append(analysis.temp_size_in_bytes + fresh)
    return max(sizes)


def plan_blocks(
    *,
    available: int,
    weights: int,
    row_state: int,
    step: int,
    fraction: float,
    bytes_per_block: int,
    useful_blocks: int,
    blocks_of_longest: int,
) -> int:
    """Blocks of the cache: a fraction of what is left over, and no more than can be used.

    Where the fraction is less than one request of the longest length, it gets room for that one.

    Raises:
        ConfigError: not even one request of the longest length fits.
    """
    left = available - weights - row_state - step
    needed = blocks_of_longest + 1  # and the null block
    if needed * bytes_per_block > left:
        raise ConfigError(
            f"{_mib(max(left, 0)).strip()} MiB are left beside weights and step, a request of "
            f"that length needs {_mib(needed * bytes_per_block).strip()} MiB of cache",
            field="max_model_len",
            value=(blocks_of_longest, "blocks"),
            remedy="lower it, or set num_kv_blocks",
        )
    by_fraction = int(left * fraction) // bytes_per_block
    return min(max(by_fraction, needed), useful_blocks)


def _mib(size: int) -> str:
    return f"{size / 2**20:9,.1f}"

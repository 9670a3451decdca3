"""An estimate of a step's time from its launches: bytes, FLOPs, latencies. Nothing is measured.

Each kernel takes as long as its memory traffic or its arithmetic, whichever is more, a part of the
other, and a fixed time on top. Kernels of a step follow each other, so their times add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from fastgen_jax.plan.gpus import Gpu
from fastgen_jax.plan.launches import Launch
from fastgen_jax.plan.load import AttentionWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiencies:
    """The estimate's only free numbers, the same for every model, shape and GPU.

    ``tensor`` and ``overlap`` were chosen with the FastGen paper's measured curve in sight (section
    3.1; see ``benchmarks/plan_vs_paper.py``), one pair for all its points. The others are
    assumptions of the usual size; nothing was measured on a GPU.

    Attributes:
        memory: share of the data sheet's bandwidth that streaming kernels reach.
        tensor: share of the data sheet's dense rate that a large product's tiles reach while they
            run; clocks sink under such load. XLA's own table for H100 has 0.79 for 8192 cubed.
        overlap: part of the shorter of loading and multiplying that hides behind the longer; the
            rest is a pipeline's filling and draining in every tile.
        tiles: (rows, columns, rate) of the tiles a product may be cut into, the rate relative to
            the largest: smaller tiles load more for each multiplication.
        most_splits: parts that a product's depth may be cut into, to fill the GPU.
        attention: share of ``tensor`` that attention's products reach between softmaxes.
        kernel: seconds from one kernel's end to the next one's work, inside a CUDA graph.
        collective: seconds that a collective takes before its bytes count: one kernel, two
            barriers between the GPUs.
        ring_hop: seconds for each of the steps of a ring.
        link: share of NVLink's rate that collectives reach.
    """

    memory: float = 0.85
    tensor: float = 0.8
    overlap: float = 0.5
    tiles: tuple[tuple[int, int, float], ...] = (
        (256, 128, 1.0),
        (128, 256, 1.0),
        (128, 128, 0.9),
        (64, 128, 0.7),
        (64, 64, 0.55),
    )
    most_splits: int = 8
    attention: float = 0.6
    kernel: float = 1.5e-6
    collective: float = 8e-6
    ring_hop: float = 1.5e-6
    link: float = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A launch's estimated time in a step, all its runs together.

    Attributes:
        launch: with the attention's traffic filled in.
        seconds: of the step.
        bound: what takes the time: "memory", "compute", "link" or "latency".
    """

    launch: Launch
    seconds: float
    bound: str


def price(launch: Launch, gpu: Gpu, rates: Efficiencies) -> Cost:
    """The estimated time of a launch whose traffic and FLOPs are known."""
    if launch.kind == "collective":
        return _price_collective(launch, gpu, rates)
    memory = (launch.read + launch.written) / (rates.memory * gpu.bandwidth)
    compute = compute_seconds(launch, gpu, rates)
    busy = max(memory, compute) + (1 - rates.overlap) * min(memory, compute)
    bound = "memory" if memory >= compute else "compute"
    return Cost(
        launch=launch,
        seconds=launch.count * (busy + rates.kernel),
        bound="latency" if busy < rates.kernel else bound,
    )


def compute_seconds(launch: Launch, gpu: Gpu, rates: Efficiencies) -> float:
    """Time of a launch's matrix products on the tensor cores; 0 without any."""
    if launch.flops == 0:
        return 0.0
    peak = rates.tensor * gpu.tensor_flops(launch.dtype or "bf16")
    if launch.sizes is None:
        return launch.flops / (peak * rates.attention)
    return min(
        _tiled_seconds(launch.sizes, tile, splits, gpu.num_sms, peak)
        for tile in rates.tiles
        for splits in _splits(rates.most_splits)
    )


def _splits(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length())]


def _tiled_seconds(
    sizes: tuple[int, int, int, int],
    tile: tuple[int, int, float],
    splits: int,
    num_sms: int,
    peak: float,
) -> float:
    """A product cut into tiles, one to an SM at a time: the last wave takes as long as a full one.

    This is what makes stairs in the time over the number of tokens.
    """
    batch, rows, columns, depth = sizes
    tile_rows, tile_columns, rate = tile
    tiles = batch * splits * math.ceil(rows / tile_rows) * math.ceil(columns / tile_columns)
    waves = math.ceil(tiles / num_sms)
    flops_of_tile = 2 * tile_rows * tile_columns * depth / splits
    return waves * flops_of_tile / (rate * peak / num_sms)


def _price_collective(launch: Launch, gpu: Gpu, rates: Efficiencies) -> Cost:
    """The cheaper of two ways: everybody reads from everybody, or a ring."""
    size = launch.num_devices
    payload, link = launch.read, rates.link * gpu.nvlink
    passes = 2 if launch.name == "all-reduce" else 1
    if launch.name == "all-to-all":
        direct_bytes = ring_bytes = payload * (size - 1) / size
    elif launch.name == "all-reduce":
        direct_bytes = payload * (size - 1)
        ring_bytes = passes * payload * (size - 1) / size
    else:
        direct_bytes = ring_bytes = payload * (size - 1) / size
    direct = rates.collective + direct_bytes / link
    ring = rates.collective + passes * (size - 1) * rates.ring_hop + ring_bytes / link
    seconds = min(direct, ring)
    bytes_of_best = direct_bytes if direct <= ring else ring_bytes
    is_link = bytes_of_best / link > seconds / 2
    return Cost(
        launch=launch,
        seconds=launch.count * seconds,
        bound="link" if is_link else "latency",
    )


def with_attention(
    launches: tuple[Launch, ...], work: AttentionWork, *, num_layers: int
) -> tuple[tuple[Launch, ...], bool]:
    """The launches with the attention's traffic, and whether the step has a kernel for it.

    ``work`` is one layer's. Where the step attends in loops of plain XLA, which can't be priced,
    one launch a layer stands for them.
    """
    count = sum(launch.count for launch in launches if launch.kind == "attention")
    if count == 0:
        missing = Launch(
            name="attention (not a kernel in this step)",
            kind="attention",
            shape="",
            read=work.page_bytes + work.other_bytes // 2,
            written=work.other_bytes // 2,
            flops=work.flops,
            count=num_layers,
        )
        return (*launches, missing), False
    share = num_layers / count

    def fill(launch: Launch) -> Launch:
        if launch.kind != "attention":
            return launch
        return replace(
            launch,
            read=launch.read + round(work.page_bytes * share),
            flops=round(work.flops * share),
        )

    return tuple(fill(launch) for launch in launches), True

"""What a compiled kernel's resources mean on a GPU: occupancy, bytes in flight, time of a turn."""

from __future__ import annotations

from dataclasses import dataclass

from fastgen_jax.plan.gpus import Gpu

# Seconds from asking for bytes of memory until they are there, while all multiprocessors ask. An
# idle GPU answers sooner; at full bandwidth requests queue. An assumption on the safe side.
LOADED_LATENCY = 800e-9

# Limits of one multiprocessor at compute capability 8.0 and 9.0, and the steps in which resources
# are handed out (CUDA C Programming Guide, "technical specifications"; CUDA occupancy calculator).
MAX_THREADS = 2048
MAX_BLOCKS = 32
REGISTERS = 65_536
WARP_SIZE = 32
_WARP_REGISTERS_STEP = 256
_WARPS_STEP = 4
_SHARED_STEP = 128
_SYSTEM_SHARED = 1024  # of every thread block, taken by CUDA itself
SCHEDULERS = 4  # each issues one instruction a clock, for its own quarter of the warps


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """Thread blocks that one multiprocessor holds at once.

    Attributes:
        blocks: thread blocks.
        warps: their warps.
        limit: what allows no more: "registers", "shared memory", "threads", "blocks" or "grid".
    """

    blocks: int
    warps: int
    limit: str


def occupancy(
    gpu: Gpu, *, registers: int, shared: int, threads: int, grid_blocks: int
) -> Occupancy:
    """How many thread blocks a multiprocessor holds.

    Args:
        registers: of a thread, as the assembler reports them.
        shared: bytes of a block's shared memory, static and dynamic.
        threads: of a block.
        grid_blocks: of the whole launch, which may be too few to fill the GPU.
    """
    warps = -(-threads // WARP_SIZE)
    warp_registers = _up_to(registers * WARP_SIZE, _WARP_REGISTERS_STEP)
    block_shared = _up_to(shared + _SYSTEM_SHARED, _SHARED_STEP)
    fitting = {
        "registers": REGISTERS // (warp_registers * _up_to(warps, _WARPS_STEP)),
        "shared memory": gpu.shared_per_sm // block_shared,
        "threads": MAX_THREADS // (warps * WARP_SIZE),
        "blocks": MAX_BLOCKS,
        "grid": -(-grid_blocks // gpu.num_sms),
    }
    limit = min(fitting, key=lambda name: fitting[name])
    return Occupancy(blocks=fitting[limit], warps=fitting[limit] * warps, limit=limit)


def needed_in_flight(gpu: Gpu, latency: float = LOADED_LATENCY) -> float:
    """Bytes that each multiprocessor must have asked for at any time to keep the memory busy.

    Little's law: latency times its share of the bandwidth.
    """
    return latency * gpu.bandwidth / gpu.num_sms


def in_flight(*, stages: int, stage_bytes: int, streams: int, blocks: int) -> int:
    """Bytes on their way to one multiprocessor while all but the stage in use are being filled."""
    return (stages - 1) * stage_bytes * streams * blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One block of keys in the inner loop, beside the time that the memory needs for it.

    All in cycles of the GPU's tensor clock. Estimates: from the static machine code and the data
    sheet, without any wait.

    Attributes:
        memory: for the block's keys and values at the multiprocessor's share of the bandwidth.
        issue: for the instructions of one warp and their fixed stalls.
        products: for the warp's matrix instructions on its tensor core, at their full rate.
        latency_share: issue and products, one after the other, over the memory's time for all the
            workers on the multiprocessor. Below 1 the memory can be kept busy.
        slot_share: of the schedulers' slots, while the memory is kept busy.
    """

    memory: float
    issue: int
    products: float
    latency_share: float
    slot_share: float


def turn(
    gpu: Gpu,
    *,
    block_bytes: int,
    issue: int,
    instructions: int,
    multiply_adds: int,
    warps: int,
    workers: int,
) -> Turn:
    """A turn of one worker, a group of ``warps`` warps, of ``workers`` on a multiprocessor."""
    memory = block_bytes / (gpu.bandwidth / gpu.num_sms) * gpu.tensor_clock
    products = multiply_adds / gpu.tensor_ops
    warps_of_scheduler = -(-warps // SCHEDULERS)
    return Turn(
        memory=memory,
        issue=issue,
        products=products,
        latency_share=(issue + products) / (memory * workers),
        slot_share=instructions * warps_of_scheduler / memory,
    )


def _up_to(value: int, step: int) -> int:
    return -(-value // step) * step

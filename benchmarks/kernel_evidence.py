"""What compilers left of a kernel, read into one row of the kernel table."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kernel_compile import Compiled, Job
from benchmarks.kernel_limits import Turn, in_flight, needed_in_flight, occupancy, turn
from benchmarks.kernel_sass import Instruction, count_opcodes, product_loops, read_code
from fastgen_jax.plan.gpus import Gpu, find_gpu
from fastgen_jax.plan.registers import read_report
from pallas_kernels.kv_write.arg_specs import kv_write_specs
from pallas_kernels.ragged_paged_attention.arg_specs import attention_specs
from pallas_kernels.ragged_paged_attention.config import HopperConfig, SplitRule
from pallas_kernels.ragged_paged_attention.heuristics import shared_bytes
from pallas_kernels.ragged_paged_attention.shape import AttentionShape

# What tells that tensor cores and asynchronous copies are used; UBLKCP copies plain bytes in bulk.
SHOWN_OPCODES = ("HGMMA", "UTMALDG", "UTMASTG", "UBLKCP", "HMMA", "LDGSTS")
_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts:
    """One kernel as its compiler reports it.

    Attributes:
        name: of its entry point.
        registers: of a thread.
        spilled: bytes that a thread moves to memory for want of registers.
        static_shared, dynamic_shared: bytes of a block.
        threads: of a block.
        code: its machine code.
    """

    name: str
    registers: int
    spilled: int
    static_shared: int
    dynamic_shared: int
    threads: int
    code: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRow:
    """One row of the table; None where it failed, is left to XLA, or a number has no meaning.

    ``compiled`` and the fields of ``KernelFacts`` come from the compilers. Occupancy follows from
    them by the GPU's rules. ``turn``, ``in_flight`` and ``needed_in_flight`` are estimates.

    Attributes:
        merge_registers: of the kernel that merges splits.
        spilled: of all kernels of the operation, that of the merge included.
        planned_shared: bytes that the heuristic reckoned with.
        instructions: of the main kernel, by name.
    """

    job: Job
    compiled: Compiled
    kernel: str | None = None
    registers: int | None = None
    merge_registers: int | None = None
    spilled: int | None = None
    static_shared: int | None = None
    dynamic_shared: int | None = None
    shared_limit: int | None = None
    planned_shared: int | None = None
    threads: int | None = None
    blocks_per_sm: int | None = None
    warps_per_sm: int | None = None
    occupancy_limit: str | None = None
    instructions: dict[str, int] | None = None
    in_flight: int | None = None
    needed_in_flight: float | None = None
    turn: Turn | None = None


def read_row(job: Job, compiled: Compiled, folder: Path, compiler: Path) -> KernelRow:
    """The row of a compilation whose files are in ``folder``.

    Raises:
        ValueError: the compilation succeeded, but its kernel isn't in the folder.
    """
    if compiled.error is not None or "Reference" in compiled.implementation:
        return KernelRow(job=job, compiled=compiled)  # the latter is XLA's own
    gpu = find_gpu(job.gpu)
    kernels = read_kernels(folder, gpu, compiler)
    ours = [kernel for kernel in kernels if job.operation in kernel.name]
    main = [kernel for kernel in ours if "merge" not in kernel.name]
    if len(main) != 1:
        names = ", ".join(kernel.name for kernel in kernels) or "none"
        raise ValueError(f"{job.spec}: no single kernel of {job.operation}; found: {names}")
    kernel = main[0]
    merge = next((other for other in ours if "merge" in other.name), None)
    shared = kernel.static_shared + kernel.dynamic_shared
    held = occupancy(
        gpu,
        registers=kernel.registers,
        shared=shared,
        threads=kernel.threads,
        grid_blocks=_grid_blocks(job, compiled, folder, kernel.name),
    )
    row: dict[str, Any] = {}
    if job.operation == "ragged_paged_attention":
        row = _attention_estimates(job, compiled, gpu, kernel, held.blocks)
    return KernelRow(
        job=job,
        compiled=compiled,
        kernel=kernel.name,
        registers=kernel.registers,
        merge_registers=merge.registers if merge else None,
        spilled=sum(other.spilled for other in ours),
        static_shared=kernel.static_shared,
        dynamic_shared=kernel.dynamic_shared,
        shared_limit=gpu.shared_per_block,
        threads=kernel.threads,
        blocks_per_sm=held.blocks,
        warps_per_sm=held.warps,
        occupancy_limit=held.limit,
        instructions=count_opcodes(kernel.code, SHOWN_OPCODES),
        **row,
    )


def read_kernels(folder: Path, gpu: Gpu, compiler: Path) -> tuple[KernelFacts, ...]:
    """Every kernel that a compilation left its PTX of.

    Mosaic GPU leaves the assembler's report and the code that it made. For XLA's other kernels the
    assembler is run on their PTX, with the options of its default.
    """
    launches = "\n".join(_text(path) for path in folder.glob("*thunk_sequence.txt"))
    return tuple(
        _read_kernel(path, gpu, compiler, launches)
        for path in sorted(folder.glob("*.ptx"))
        if ".entry " in _text(path)
    )


def _read_kernel(path: Path, gpu: Gpu, compiler: Path, launches: str) -> KernelFacts:
    threads = re.search(r"\.(?:reqntid|maxntid) (\d+)", _text(path))
    if path.with_suffix(".ptxas").is_file():
        report = _text(path.with_suffix(".ptxas"))
        code = read_code(_text(path.with_suffix(".sass_ctrl")))
        found = re.search(r"smem_scratch_bytes=(\d+)", _text(path.with_suffix(".resources.txt")))
    else:
        report, code = _assemble(path, gpu, compiler)
        entry = re.search(r"\.entry (\w+)", _text(path))
        name = entry.group(1) if entry else ""
        found = re.search(rf" {name} .*shared_memory: (\d+) bytes", launches)
    [registers] = read_report(report)
    static = re.search(r"(\d+) bytes smem", report)
    return KernelFacts(
        name=registers.name,
        registers=registers.registers,
        spilled=registers.spilled,
        static_shared=int(static.group(1)) if static else 0,
        dynamic_shared=int(found.group(1)) if found else 0,
        threads=int(threads.group(1)) if threads else 0,
        code=code,
    )


def _assemble(path: Path, gpu: Gpu, compiler: Path) -> tuple[str, tuple[Instruction, ...]]:
    tools = {name: next(compiler.glob(f"nvidia/*/bin/{name}")) for name in ("ptxas", "nvdisasm")}
    binary = path.with_suffix(".cubin")
    command = [str(tools["ptxas"]), "-v", f"-arch={gpu.ptx_arch}", "-o", str(binary), str(path)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    command = [str(tools["nvdisasm"]), "-hex", str(binary)]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return report, read_code(code)


def _grid_blocks(job: Job, compiled: Compiled, folder: Path, name: str) -> int:
    """Thread blocks of the launch: XLA lists Triton's, Mosaic's follow from the configuration."""
    config = compiled.config
    if "num_blocks" in config:
        return config["num_blocks"]
    for path in folder.glob("*thunk_sequence.txt"):
        found = re.search(rf" {name} grid: \[(\d+), (\d+), (\d+)\]", _text(path))
        if found:
            return int(found[1]) * int(found[2]) * int(found[3])
    shape = next(spec.shape for spec in kv_write_specs() if spec.name == job.spec)
    return -(-shape.num_tokens // config["block_tokens"]) * (
        shape.num_kv_heads // config["block_heads"]
    )


def _attention_estimates(
    job: Job, compiled: Compiled, gpu: Gpu, kernel: KernelFacts, blocks: int
) -> dict[str, Any]:
    """Bytes in flight and the time of a turn."""
    spec = next(spec for spec in attention_specs() if spec.name == job.spec)
    shape, config = spec.shape, compiled.config
    is_hopper = compiled.implementation == "HopperConfig"
    streams = config["streams"] if is_hopper else 1
    stages = config["stages"] if is_hopper else config["num_stages"]
    stage_bytes = 2 * config["block_keys"] * shape.head_dim * _ITEM_BYTES[shape.kv_dtype]
    loops = sorted(product_loops(kernel.code), key=lambda loop: (loop.multiply_adds, loop.cycles))
    # Triton has a loop for tiles of up to 16 rows, which decodes take, and one for larger tiles.
    is_decode = shape.num_tokens == shape.num_rows
    loop = loops[0] if is_decode and not is_hopper else loops[-1]
    warps = 4 if is_hopper else config["num_warps"]
    return {
        "planned_shared": _planned_shared(shape, config) if is_hopper else None,
        "in_flight": in_flight(
            stages=stages, stage_bytes=stage_bytes, streams=streams, blocks=blocks
        ),
        "needed_in_flight": needed_in_flight(gpu),
        "turn": turn(
            gpu,
            block_bytes=stage_bytes,
            issue=loop.cycles,
            instructions=loop.instructions,
            multiply_adds=loop.multiply_adds,
            warps=warps,
            workers=streams * blocks,
        ),
    }


def _planned_shared(shape: AttentionShape, config: dict[str, Any]) -> int:
    sizes = {name: value for name, value in config.items() if name != "splits"}
    return shared_bytes(shape, HopperConfig(splits=SplitRule(**config["splits"]), **sizes))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")

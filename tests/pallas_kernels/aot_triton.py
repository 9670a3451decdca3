"""Compiles the Triton kernel for GPUs that aren't there, and prints what it takes of them.

Run as a script: the compiler's dump options are read when jax starts, and a compiler that aborts
takes its process along. Needs the packages of requirements/aot.txt; no GPU and no driver.

    python tests/pallas_kernels/aot_triton.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgen_jax.plan.gpus import Gpu

HEADS = 8  # kv heads
TOKENS, ROWS, PAGES, CONTEXT = 256, 64, 1024, 4096


GPUS = ("a100", "h100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One configuration to compile."""

    gpu: str
    head_dim: int
    page_size: int
    group: int
    dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    options: str = "plain"  # or "all": window, softcap and sinks; or "softcap"
    has_tile_splits: bool = False


def variants(*, is_quick: bool) -> Iterator[Variant]:
    """Every configuration that is shipped, or a few that stand for them."""
    if is_quick:
        for gpu in GPUS:
            yield Variant(gpu=gpu, head_dim=128, page_size=16, group=4)
        yield Variant(
            gpu="a100",
            head_dim=256,
            page_size=64,
            group=7,
            kv_dtype="float8_e4m3fn",
            options="all",
            has_tile_splits=True,
        )
        return
    for gpu in GPUS:
        for head_dim, page_size, group in itertools.product(
            (64, 80, 96, 128, 256), (16, 32, 64, 128), (1, 4, 8)
        ):
            # Pages of 32 and more differ in constants alone.
            if group == 4 or page_size in (16, 64):
                yield Variant(gpu=gpu, head_dim=head_dim, page_size=page_size, group=group)
        for head_dim, page_size, (kv_dtype, options) in itertools.product(
            (64, 96, 128, 256),
            (16, 64),
            (("bfloat16", "all"), ("float8_e4m3fn", "all"), ("float8_e4m3fn", "softcap")),
        ):
            yield Variant(
                gpu=gpu,
                head_dim=head_dim,
                page_size=page_size,
                group=7,
                kv_dtype=kv_dtype,
                options=options,
                has_tile_splits=True,
            )
        for head_dim in (64, 128, 256):
            yield Variant(
                gpu=gpu,
                head_dim=head_dim,
                page_size=16,
                group=3,
                dtype="float16",
                kv_dtype="float16",
            )


def compile_variant(variant: Variant, dump: Path) -> dict[str, object]:
    """Registers, spills and shared memory of a variant's kernels, and what they are made of."""
    from dataclasses import replace

    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import NamedSharding, PartitionSpec

    from fastgen_jax.plan.gpus import find_gpu, target_config
    from pallas_kernels.ragged_paged_attention.config import SplitRule
    from pallas_kernels.ragged_paged_attention.options import AttentionOptions
    from pallas_kernels.ragged_paged_attention.shape import AttentionShape
    from pallas_kernels.ragged_paged_attention.triton import (
        ragged_paged_attention_triton,
        triton_heuristic,
    )
    from pallas_kernels.ragged_paged_attention.units import KernelWork, max_units

    gpu = find_gpu(variant.gpu)
    shape = AttentionShape(
        num_tokens=TOKENS,
        num_rows=ROWS,
        num_heads=HEADS * variant.group,
        num_kv_heads=HEADS,
        head_dim=variant.head_dim,
        page_size=variant.page_size,
        pages_per_row=CONTEXT // variant.page_size,
        dtype=variant.dtype,
        kv_dtype=variant.kv_dtype,
    )
    splits = SplitRule(max_tile_splits=2 if variant.has_tile_splits else 1)
    config = replace(triton_heuristic(shape, shared_memory=gpu.shared_per_block), splits=splits)
    options = {
        "plain": AttentionOptions(scale=0.1),
        "softcap": AttentionOptions(scale=0.1, softcap=30.0),
        "all": AttentionOptions(scale=0.1, softcap=30.0, window=1000),
    }[variant.options]
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target_config(gpu), topology="1x1x1"
    )
    mesh = topologies.make_mesh(topology, (1,), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec())

    def array(sizes: tuple[int, ...], dtype: object = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    merges = ROWS + (TOKENS if variant.has_tile_splits else 0)
    work = KernelWork(
        units=array((max_units(shape, config), 8)),  # pyright: ignore[reportArgumentType]
        num_units=array((1,)),  # pyright: ignore[reportArgumentType]
        merges=array((merges, 4)),  # pyright: ignore[reportArgumentType]
        num_merges=array((1,)),  # pyright: ignore[reportArgumentType]
        block_tables=array((ROWS, shape.pages_per_row)),  # pyright: ignore[reportArgumentType]
    )
    heads = array((shape.num_heads,), jnp.float32) if variant.options == "all" else None
    scales = array((HEADS,), jnp.float32) if variant.kv_dtype != variant.dtype else None
    pages = array((PAGES, HEADS, variant.page_size, variant.head_dim), variant.kv_dtype)

    def attend(q, k_pages, v_pages, work, sinks, scales):
        return ragged_paged_attention_triton(
            q,
            k_pages,
            v_pages,
            work,
            shape=shape,
            options=options,
            config=config,
            sinks=sinks,
            k_scales=scales,
            v_scales=scales,
        )

    for old in dump.iterdir():
        old.unlink()
    start = time.perf_counter()
    q = array((TOKENS, shape.num_heads, variant.head_dim), variant.dtype)
    with jax.set_mesh(mesh):
        jax.jit(attend).lower(q, pages, pages, work, heads, scales).compile()
    seconds = time.perf_counter() - start
    return asdict(variant) | {
        "block_keys": config.block_keys,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        **_measure(dump, gpu),
        "shared_memory_limit": gpu.shared_per_block,
        "compile_seconds": round(seconds, 1),
    }


def _measure(dump: Path, gpu: Gpu) -> dict[str, object]:
    kernels = {}
    for ptx in dump.glob("*.ptx"):
        text = ptx.read_text()
        for name in re.findall(r"\.entry (\w+)", text):
            kernels[name] = (text, *_registers(ptx, gpu))
    text, registers, spills = kernels["ragged_paged_attention"]
    _, merge_registers, merge_spills = kernels["ragged_paged_attention_merge"]
    launches = next(dump.glob("*.thunk_sequence.txt")).read_text()
    found = re.search(
        r"ragged_paged_attention grid.*threads: \[(\d+).*shared_memory: (\d+)", launches
    )
    assert found is not None, launches
    threads, shared_memory = int(found[1]), int(found[2])
    # 64 Ki registers a multiprocessor, handed out to warps 256 at a time; 1 KiB of each program's
    # shared memory is the system's.
    warp_registers = -(-registers * 32 // 256) * 256
    by_registers = 65536 // (warp_registers * (threads // 32))
    by_shared_memory = (gpu.shared_per_block + 1024) // (shared_memory + 1024)
    instruction = (
        r"wgmma\.mma_async|mma\.sync" if gpu.compute_capability >= (9, 0) else r"mma\.sync"
    )
    return {
        "registers": registers,
        "spill_bytes": spills + merge_spills,
        "shared_memory": shared_memory,
        "programs_per_multiprocessor": min(by_registers, by_shared_memory),
        "matrix_instructions": len(re.findall(instruction, text)),
        "async_copies": len(re.findall(r"cp\.async\.c[ag]", text)),
        "merge_registers": merge_registers,
        "launches": len(re.findall(r"^\d+: k", launches, re.MULTILINE)),
    }


def _registers(ptx: Path, gpu: Gpu) -> tuple[int, int]:
    """Registers of a kernel and the bytes it spills, as the assembler reports them."""
    found = (path for folder in sys.path for path in Path(folder).glob("nvidia/*/bin/ptxas"))
    assembler = next(found, None)
    assert assembler is not None, "no nvidia/*/bin/ptxas on sys.path: install nvidia-cuda-nvcc"
    done = subprocess.run(
        [assembler, "-v", f"-arch={gpu.ptx_arch}", "-o", os.devnull, ptx],
        capture_output=True,
        text=True,
        check=True,
    )
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spills = re.search(r"(\d+) bytes spill stores", done.stderr)
    assert registers is not None, done.stderr
    assert spills is not None, done.stderr
    return int(registers[1]), int(spills[1])


def main() -> None:
    """Compile all, print a table or JSON, and fail where anything spills or doesn't fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a few variants instead of all")
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[2]))
    with tempfile.TemporaryDirectory() as folder:
        # The CPU is jax's platform, so nothing looks for a driver; CUDA is only compiled for.
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_emitter_re=ptx"
        rows = []
        for variant in variants(is_quick=given.quick):
            rows.append(compile_variant(variant, Path(folder)))
            if not given.json:
                if len(rows) == 1:
                    print(" | ".join(rows[0]))
                print(" | ".join(str(value) for value in rows[-1].values()), flush=True)
    if given.json:
        print(json.dumps(rows))
    bad = [
        row
        for row in rows
        if row["spill_bytes"] or row["shared_memory"] > row["shared_memory_limit"]
    ]
    if not given.json:
        print(f"{len(rows)} variants, {len(bad)} with spills or too much shared memory")


if __name__ == "__main__":
    main()

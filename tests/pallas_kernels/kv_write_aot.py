"""Compiles the write for a GPU that isn't there and prints what came out, a JSON object a line.

Run as ``python -m tests.pallas_kernels.kv_write_aot GPU DIRECTORY [NUMBER ...]`` (h100 or a100;
numbers of CASES, all of them if none is given) with XLA's CUDA compiler installed, in a process of
its own: a compiler that gives up may end it. The directory takes what the compilers leave.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

CASES: tuple[dict[str, Any], ...] = (
    {"num_tokens": 256},
    {"num_tokens": 2048},
    {"num_tokens": 1},
    {"num_tokens": 257, "head_dim": 64, "rotary_dim": 64},
    {"num_tokens": 256, "tensor_parallel": 8},
    {"num_tokens": 256, "head_dim": 64, "num_kv_heads": 32, "rotary_dim": 0},
    {"num_tokens": 256, "head_dim": 80, "num_kv_heads": 32, "rotary_dim": 32},
    {"num_tokens": 256, "head_dim": 80, "num_kv_heads": 1, "rotary_dim": 80},
    {"num_tokens": 256, "head_dim": 96, "num_kv_heads": 3, "rotary_dim": 96, "dtype": "float16"},
    {"num_tokens": 256, "head_dim": 256, "rotary_dim": 64},
    {"num_tokens": 256, "kv_dtype": "float8_e4m3fn"},
    {"num_tokens": 2048, "kv_dtype": "float8_e5m2", "tensor_parallel": 8},
    {"num_tokens": 256, "implementation": "xla"},
    {"num_tokens": 256, "implementation": "xla", "kv_dtype": "float8_e4m3fn"},
)


ASSEMBLED = r"entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
ACCESS = r"(?:ld\.global|st\.global|atom|cp\.async\.bulk\.(?:tensor|global|shared))[.\w]*"


def main(gpu_name: str, directory: Path, numbers: tuple[int, ...]) -> None:
    """Compile cases for a GPU."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated")
    for number in numbers:
        case = CASES[number]
        folder = directory / f"{gpu_name}-{number}"
        folder.mkdir(parents=True)
        print(json.dumps({"gpu": gpu_name, **case, **compile_case(gpu_name, case, folder)}))


def compile_case(gpu_name: str, case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the compiled write of one case is like."""
    # XLA is told below where to leave its files; Mosaic looks into the environment.
    os.environ["MOSAIC_GPU_DUMP_TO"] = str(folder)
    os.environ["MOSAIC_GPU_DUMP_PTX"] = "1"
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from fastgen_jax.plan.gpus import find_gpu, target_config
    from pallas_kernels.kv_write.api import write_kv
    from pallas_kernels.kv_write.select import select_write_config
    from pallas_kernels.kv_write.shape import KvWriteShape
    from pallas_kernels.target import A100, H100

    devices = case.get("tensor_parallel", 1)
    dtype = case.get("dtype", "bfloat16")
    shape = KvWriteShape(
        num_tokens=case["num_tokens"],
        num_kv_heads=case.get("num_kv_heads", 8) // devices,
        head_dim=case.get("head_dim", 128),
        rotary_dim=case.get("rotary_dim", 128),
        num_pages=1024,
        page_size=16,
        dtype=dtype,
        kv_dtype=case.get("kv_dtype", dtype),
    )
    target = {"h100": H100, "a100": A100}[gpu_name]
    config = select_write_config(shape, target, implementation=case.get("implementation"))
    topology = topologies.get_topology_desc(
        platform="cuda",
        target_config=target_config(find_gpu(gpu_name)),
        topology=f"1x1x{devices}",
    )
    mesh = Mesh(topology.devices, ("tensor",), axis_types=(AxisType.Auto,))
    heads, nothing = PartitionSpec(None, "tensor"), PartitionSpec()

    def array(shape: tuple[int, ...], dtype: str, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=NamedSharding(mesh, spec))

    all_heads = shape.num_kv_heads * devices
    pool = (shape.num_pages, all_heads, shape.page_size, shape.head_dim)
    values = array((shape.num_tokens, all_heads, shape.head_dim), dtype, heads)
    places = array((shape.num_tokens,), "int32", nothing)
    table = array((shape.num_tokens, shape.rotary_dim // 2), "float32", nothing)
    has_scales = shape.kv_dtype != dtype
    scales = array((all_heads,), "float32", PartitionSpec("tensor")) if has_scales else None

    def write(k_pages, v_pages, k, v, page_ids, slots, rotation, k_scales, v_scales):
        return write_kv(
            k_pages,
            v_pages,
            k,
            v,
            page_ids,
            slots,
            rotation=rotation,
            k_scales=k_scales,
            v_scales=v_scales,
            config=config,
        )

    per_head = PartitionSpec("tensor") if has_scales else None
    spread = jax.shard_map(
        write,
        mesh=mesh,
        in_specs=(*(heads,) * 4, nothing, nothing, nothing, per_head, per_head),
        out_specs=(heads, heads),
        check_vma=False,
    )
    pages = array(pool, shape.kv_dtype, heads)
    arguments = (pages, pages, values, values, places, places)
    rotation = (table, table) if shape.rotary_dim else None
    step = spread if devices > 1 else write
    with jax.set_mesh(mesh):
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments, rotation, scales, scales)
    compiled = lowered.compile(
        compiler_options={"xla_dump_to": str(folder), "xla_dump_emitter_re": "ptx"}
    )
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    return {
        "config": type(config).__name__ + str(dataclasses.asdict(config)),
        "pool_bytes": 2 * shape.pool_elements * jnp.dtype(shape.kv_dtype).itemsize,
        "alias_bytes": memory.alias_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "launches": len(re.findall(r" (?:fusion|custom-call|copy)\(", text.split("\nENTRY")[1])),
        "copies": len(re.findall(r" copy(?:-start)?\(", text)),
        **_machine_code(folder, "sm_90a" if gpu_name == "h100" else "sm_80"),
    }


def _machine_code(folder: Path, arch: str) -> dict[str, Any]:
    """Registers, spills and shared memory of every kernel, and its accesses to memory."""
    from subprocess import run

    import nvidia

    kernels: dict[str, Any] = {}
    accesses: Counter[str] = Counter()
    packages = [Path(package) for package in nvidia.__path__]
    assembler = next(path for package in packages for path in package.glob("*/bin/ptxas"))
    for source in sorted(folder.glob("*.ptx")):
        command = [str(assembler), "-v", f"-arch={arch}", "-o", os.devnull, str(source)]
        report = run(command, capture_output=True, text=True, check=True).stderr
        for name, spills, registers in re.findall(ASSEMBLED, report, re.DOTALL):
            kernels[name] = {"registers": int(registers), "spill_bytes": int(spills)}
        accesses.update(re.findall(ACCESS, source.read_text()))
    for path in folder.glob("*resources.txt"):
        for size in re.findall(r"smem_scratch_bytes=(\d+)", path.read_text()):
            next(iter(kernels.values()))["shared_bytes"] = int(size)
    return {"kernels": kernels, "accesses": dict(accesses)}


if __name__ == "__main__":
    chosen = tuple(int(number) for number in sys.argv[3:]) or tuple(range(len(CASES)))
    main(sys.argv[1], Path(sys.argv[2]), chosen)

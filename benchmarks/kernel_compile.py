"""Kernels compiled for GPUs that aren't there, each in a process of its own.

Run as ``python -m benchmarks.kernel_compile`` it is such a process: a job as JSON on standard
input, how it ended as JSON on standard output. A compiler that ends its process costs its own job
alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

WORKER = (sys.executable, "-m", "benchmarks.kernel_compile")
OPERATIONS = ("ragged_paged_attention", "kv_write")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One compilation.

    Attributes:
        gpu: name, as in ``fastgen_jax.plan.gpus``.
        operation: one of ``OPERATIONS``.
        spec: name in the operation's ``arg_specs``.
    """

    gpu: str
    operation: str
    spec: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """How a compilation ended.

    Attributes:
        implementation: class of the configuration that was picked; "" where none was.
        config: its sizes.
        seconds: of tracing, lowering and compiling.
        error: the compiler's last words; None where it succeeded.
    """

    implementation: str
    config: dict[str, Any]
    seconds: float
    error: str | None = None


def compile_jobs(
    jobs: list[Job],
    compiler: Path,
    *,
    timeout: float = 600,
    command: Sequence[str] = WORKER,
) -> Iterator[tuple[Job, Compiled, Path]]:
    """Each job with its end and the folder of what the compilers left, gone when the next begins.

    Args:
        jobs: what to compile, in this order.
        compiler: the folder of the CUDA compiler's packages.
        timeout: seconds after which a compilation is given up.
        command: of the process that compiles.
    """
    for job in jobs:
        with tempfile.TemporaryDirectory() as folder:
            yield job, _run_process(job, Path(folder), compiler, timeout, command), Path(folder)


def _run_process(
    job: Job, folder: Path, compiler: Path, timeout: float, command: Sequence[str]
) -> Compiled:
    """One job in a process of its own.

    A process that compiled several would find a kernel in its cache that two of them share, and
    leave no files of it.
    """
    from fastgen_jax.plan.deviceless import compiler_environment

    environment = compiler_environment(os.environ, folder, compiler)
    environment |= {"MOSAIC_GPU_DUMP_PTX": "1", "MOSAIC_GPU_DUMP_SASS_CTRL": "1"}
    try:
        done = subprocess.run(
            command,
            input=json.dumps(asdict(job)),
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _failed(f"took more than {timeout:.0f} s")
    if done.returncode != 0 or not done.stdout:
        words = " ".join(done.stderr.splitlines()[-8:])
        return _failed(f"the compiler's process ended with {done.returncode}: {words}")
    return Compiled(**json.loads(done.stdout))


def _failed(error: str) -> Compiled:
    return Compiled(implementation="", config={}, seconds=0, error=error)


def main() -> None:
    """Compile what standard input asks for."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what compilers print isn't an answer
    job = Job(**json.loads(sys.stdin.read()))
    try:
        answer = compile_one(job)
    except Exception as error:  # of any kind: it is the row's result
        words = f"{type(error).__name__}: {error}".splitlines()
        answer = _failed(" ".join(words[:4])[:600])
    answers.write(json.dumps(asdict(answer)))
    answers.flush()


def compile_one(job: Job) -> Compiled:
    """One spec compiled, in this process, whose environment says where the compilers' files go."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh

    from fastgen_jax.plan.gpus import find_gpu, target_config

    gpu = find_gpu(job.gpu)
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target_config(gpu), topology="1x1x1"
    )
    mesh = Mesh(topology.devices, ("device",), axis_types=(AxisType.Auto,))
    start = time.perf_counter()
    function, arguments, config, donated = _call(job, mesh)
    with jax.set_mesh(mesh):
        jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
    return Compiled(
        implementation=type(config).__name__,
        config=asdict(config),
        seconds=round(time.perf_counter() - start, 1),
    )


def _call(job: Job, mesh: Any) -> tuple[Callable[..., Any], tuple[Any, ...], Any, tuple[int, ...]]:
    """The function to compile, its arguments, the configuration, and which are given away."""
    from fastgen_jax.plan.gpus import find_gpu
    from fastgen_jax.plan.spec import target_of_gpu

    target = target_of_gpu(find_gpu(job.gpu))
    if job.operation == "kv_write":
        from pallas_kernels import write_kv
        from pallas_kernels.kv_write.arg_specs import kv_write_specs

        spec = next(spec for spec in kv_write_specs() if spec.name == job.spec)
        config = spec.config(target)
        given = spec.arguments(mesh=mesh)

        def write(k_pages: Any, v_pages: Any, given: Any) -> Any:
            return write_kv(
                k_pages,
                v_pages,
                given.k,
                given.v,
                given.page_ids,
                given.slots,
                rotation=given.rotation,
                k_scales=given.k_scales,
                v_scales=given.v_scales,
                config=config,
            )

        rest = replace(given, k_pages=None, v_pages=None)  # pyright: ignore[reportArgumentType]
        return write, (given.k_pages, given.v_pages, rest), config, (0, 1)
    from pallas_kernels import ragged_paged_attention
    from pallas_kernels.ragged_paged_attention.arg_specs import attention_specs

    attention = next(spec for spec in attention_specs() if spec.name == job.spec)
    chosen = attention.config(target)

    def attend(given: Any) -> Any:
        return ragged_paged_attention(
            given.q,
            given.k_pages,
            given.v_pages,
            given.work,
            options=attention.options,
            config=chosen,
            sinks=given.sinks,
            k_scales=given.k_scales,
            v_scales=given.v_scales,
        )

    return attend, (attention.arguments(chosen, mesh=mesh),), chosen, ()


if __name__ == "__main__":
    main()

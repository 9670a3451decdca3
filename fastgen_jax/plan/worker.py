"""The process that compiles: a request on standard input, files in its directory as the answer.

Run as ``python -m fastgen_jax.plan.worker``. A compiler that aborts takes only this process along.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from fastgen_jax.parallel.mesh import make_mesh
from fastgen_jax.plan.gpus import Gpu, find_gpu, target_config
from fastgen_jax.plan.request import CompileAnswer, CompileRequest
from fastgen_jax.plan.spec import plan_spec, target_of_gpu
from fastgen_jax.plan.worker_files import ANSWER_FILE, PROGRAM_FILE
from fastgen_jax.runtime.abstract import abstract_step
from fastgen_jax.runtime.compiler_options import compiler_options
from fastgen_jax.runtime.kernels import with_kernels
from fastgen_jax.sampling import RowLimits


def main() -> None:
    """Compile what standard input asks for; progress words go to standard error."""
    request = CompileRequest.from_json(sys.stdin.read())
    gpu = find_gpu(request.gpu)
    mesh = compile_only_mesh(
        gpu, tensor=request.tensor_parallel_size, expert=request.expert_parallel_size
    )
    spec = with_kernels(
        plan_spec(
            request.model,
            (request.num_tokens, request.num_rows),
            num_blocks=request.num_blocks,
            block_size=request.block_size,
            max_model_len=request.max_model_len,
            max_logprobs=request.max_logprobs,
            dtype=request.dtype,
        ),
        request.model,
        target_of_gpu(gpu),
        implementation=request.implementation,
        num_shards=request.num_devices,
    )
    step = abstract_step(request.model, spec, _limits(request), dtype=request.dtype, mesh=mesh)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = step.lower()
        traced = time.perf_counter()
        compiled = lowered.compile(compiler_options=compiler_options("gpu"))
    done = time.perf_counter()
    memory: Any = compiled.memory_analysis()
    weights, pages, rows, _ = step.arguments
    answer = CompileAnswer(
        weight_names=step.weight_names,
        num_pages=len(pages),
        kernels=f"{spec.attention}, {spec.kv_write}",
        weight_bytes=_local_bytes(weights),
        page_bytes=_local_bytes(pages),
        row_state_bytes=_local_bytes(rows),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        trace_seconds=traced - start,
        compile_seconds=done - traced,
    )
    directory = Path(request.directory)
    (directory / PROGRAM_FILE).write_text(compiled.as_text() or "", encoding="utf-8")
    (directory / ANSWER_FILE).write_text(answer.to_json(), encoding="utf-8")


def compile_only_mesh(gpu: Gpu, *, tensor: int, expert: int = 1) -> Mesh:
    """A mesh of GPUs that exist only for the compiler."""
    if gpu.compute_capability != (9, 0):
        _tell_mosaic(gpu.compute_capability)
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target_config(gpu), topology=f"1x1x{tensor * expert}"
    )
    return make_mesh(topology.devices, tensor=tensor, expert=expert)


def _limits(request: CompileRequest) -> RowLimits:
    return RowLimits(
        max_num_seqs=request.max_num_seqs,
        max_model_len=request.max_model_len,
        vocab_size=request.model.vocab_size,
        max_logprobs=request.max_logprobs,
        max_logit_bias=request.max_logit_bias,
        max_bad_words=request.max_bad_words,
    )


def _tell_mosaic(capability: tuple[int, int]) -> None:
    """Mosaic takes every compile-only device for compute capability 9.0 and asks nobody."""
    from jax.experimental.mosaic.gpu import core, utils

    for module in (core, utils):
        if hasattr(module, "_infer_arch"):
            setattr(module, "_infer_arch", lambda: capability)  # noqa: B010


def _local_bytes(tree: Any) -> int:
    """Bytes of one device's share of every leaf."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        size = leaf.dtype.itemsize
        for length in shape:
            size *= length
        total += size
    return total


if __name__ == "__main__":
    main()

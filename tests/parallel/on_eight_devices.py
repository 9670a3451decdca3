"""Runs one workload over meshes of 1 to 8 virtual CPU devices; prints what came out as JSON.

A program of its own, because jax counts the devices when it starts:
``XLA_FLAGS=--xla_force_host_platform_device_count=8 python on_eight_devices.py``
"""

from __future__ import annotations

import json
import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fastgen_jax import SamplingParams
from fastgen_jax.batching import StepResults, StepShape
from fastgen_jax.batching.inputs import ROW_FLAG_SAMPLES
from fastgen_jax.models.config import ModelConfig, llama_config
from fastgen_jax.models.families.parts import all_sparse, mixture_of
from fastgen_jax.models.tensors import tensor_shapes
from fastgen_jax.parallel.mesh import make_mesh
from fastgen_jax.parallel.sharding import sharding
from fastgen_jax.runtime.abstract import AbstractStep, abstract_step
from fastgen_jax.runtime.cache import cache_spec
from fastgen_jax.runtime.step import StepSpec
from fastgen_jax.sampling import RowLimits, init_row_state, pack_row, write_row

MODEL = llama_config(
    vocab_size=1000,  # a device's share isn't a whole number of the sampler's blocks
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=16,
    num_kv_heads=8,
    head_dim=8,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    tie_word_embeddings=False,
)
NUM_EXPERTS = 4
SPARSE = all_sparse(replace(MODEL, moe=mixture_of(NUM_EXPERTS, 2, 32)))
SHARING = replace(
    SPARSE,
    moe=replace(mixture_of(NUM_EXPERTS, 2, 32), shared_intermediate_size=48, has_shared_gate=True),
)
MAX_LOGPROBS = 3
LIMITS = RowLimits(
    max_num_seqs=4, max_model_len=64, vocab_size=MODEL.vocab_size, max_logprobs=MAX_LOGPROBS
)
SHAPE = StepShape(16, 3)  # rows that don't divide by the devices
BLOCK_SIZE, BLOCKS_PER_SEQ = 8, 6
PROMPT_LENGTHS = (21, 5, 3)
PARAMS = (
    SamplingParams(temperature=0, logprobs=MAX_LOGPROBS),
    SamplingParams(temperature=0),
    SamplingParams(temperature=0.8, top_k=50, top_p=0.9, logprobs=1),
)
# A plan is a list of (request, tokens); single tokens first, as the packer puts them.
PLANS = (
    [(0, 8), (1, 5), (2, 3)],  # a chunk beside whole prompts
    [(1, 1), (2, 1), (0, 13)],  # decodes beside the last chunk, which crosses pages
    *[[(0, 1), (1, 1), (2, 1)]] * 4,
)


def spec_of(model: ModelConfig = MODEL, *, unroll_layers: bool) -> StepSpec:
    return StepSpec(
        shape=SHAPE,
        max_blocks_per_seq=BLOCKS_PER_SEQ,
        max_logprobs=MAX_LOGPROBS,
        cache=cache_spec(
            model,
            num_blocks=1 + len(PROMPT_LENGTHS) * BLOCKS_PER_SEQ,
            block_size=BLOCK_SIZE,
            dtype="float32",
            unroll_layers=unroll_layers,
        ),
    )


def compiled(step: AbstractStep) -> jax.stages.Compiled:
    jitted = jax.jit(step.function, donate_argnums=step.donate_argnums)
    return jitted.lower(*step.arguments).compile()


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else rng.standard_normal(shape, np.float32) * 0.2
        for name, shape in tensor_shapes(MODEL).items()
    }


def packed_inputs(
    spec: StepSpec, plan: list[tuple[int, int]], computed: dict[int, int], known: dict[int, int]
) -> np.ndarray:
    """The plan as the step's input; ``computed`` tokens of each request are in the pages."""
    packed = np.zeros(spec.inputs.size, np.int32)
    fields = {
        name: packed[place].reshape(spec.inputs.fields[name])
        for name, place in spec.inputs.slices.items()
    }
    fields["num_rows"][...] = len(plan)
    fields["num_single_rows"][...] = sum(count == 1 for _, count in plan)
    start = 0
    for row, (request, count) in enumerate(plan):
        end = computed[request] + count
        fields["device_row"][row] = request
        fields["query_start"][row] = start
        fields["query_len"][row] = count
        fields["kv_len"][row] = end
        fields["flags"][row] = ROW_FLAG_SAMPLES if end == known[request] else 0
        first = 1 + request * BLOCKS_PER_SEQ
        fields["block_tables"][row] = np.arange(first, first + BLOCKS_PER_SEQ)
        start += count
    return packed


@dataclass(frozen=True, slots=True)
class Case:
    """A compiled step."""

    spec: StepSpec
    step: AbstractStep
    program: jax.stages.Compiled


def prepare(mesh: Mesh, *, unroll_layers: bool) -> Case:
    spec = spec_of(unroll_layers=unroll_layers)
    step = abstract_step(MODEL, spec, LIMITS, dtype="float32", mesh=mesh)
    return Case(spec, step, compiled(step))


def run(case: Case) -> dict[str, object]:
    """Tokens, log-probabilities and final pages of the workload, and facts of its program."""
    spec, step, program = case.spec, case.step, case.program
    named = weights()
    leaves = put(tuple(named[name] for name in step.weight_names), step.arguments[0])
    pages = put(spec.cache.zeros(), step.arguments[1])
    rows = init_row_state(LIMITS)
    rng = np.random.default_rng(1)
    for request, length in enumerate(PROMPT_LENGTHS):
        packed = pack_row(
            LIMITS,
            token_ids=rng.integers(0, MODEL.vocab_size, length).tolist(),
            prompt_len=length,
            params=PARAMS[request],
            seed=request,
        )
        rows = write_row(rows, jnp.int32(request), jnp.asarray(packed))
    rows = put(rows, step.arguments[2])
    known: dict[int, int] = dict(enumerate(PROMPT_LENGTHS))
    computed = dict.fromkeys(known, 0)
    tokens, logprobs = [], []
    for plan in PLANS:
        packed = put(packed_inputs(spec, plan, computed, known), step.arguments[3])
        pages, rows, out = program(leaves, pages, rows, packed)
        results = StepResults(np.asarray(out), spec.results)
        for row, (request, count) in enumerate(plan):
            computed[request] += count
            if computed[request] == known[request]:
                known[request] += 1
                tokens.append([request, results.token_ids[row]])
        logprobs += results.field("logprob").tolist()
        logprobs += results.field("top_logprobs").reshape(-1).tolist()
    k_pages, v_pages = (np.concatenate([np.asarray(x) for x in pages[i::2]]) for i in (0, 1))
    return {
        "tokens": tokens,
        "logprobs": logprobs,
        "k_pages": k_pages.reshape(-1).tolist(),
        "v_pages": v_pages.reshape(-1).tolist(),
        **facts(program, step),
    }


def put(values: Any, like: Any) -> Any:
    """Arrays in the places that the step declares for them."""
    return jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding), values, like)


def facts(program: jax.stages.Compiled, step: AbstractStep) -> dict[str, object]:
    """What the compiled program moves between devices, copies and updates in place."""
    text = program.as_text()
    donated = [step.arguments[index] for index in step.donate_argnums]
    pool = step.arguments[1][0]
    memory = program.memory_analysis()
    assert text is not None
    assert memory is not None
    return {
        "collectives": collectives(text),
        "devices": len(pool.sharding.device_set),
        "pool_copies": num_copies(text, pool),
        "weight_copies": sum(num_copies(text, leaf) for leaf in matrices(step)),
        "aliased_bytes": memory.alias_size_in_bytes,
        "donated_bytes": sum(local_bytes(leaf) for leaf in jax.tree.leaves(donated)),
    }


def matrices(step: AbstractStep) -> list[jax.ShapeDtypeStruct]:
    return [leaf for leaf in step.arguments[0] if len(leaf.shape) > 1]


def num_copies(text: str, leaf: jax.ShapeDtypeStruct) -> int:
    """Copies of arrays with the shape that a device has of a leaf."""
    sizes = ",".join(str(size) for size in local_shape(leaf))
    return len(re.findall(rf"= f32\[{sizes}\]\S* copy\(", text))


def local_shape(leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    assert leaf.sharding is not None
    return leaf.sharding.shard_shape(leaf.shape)


def local_bytes(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(local_shape(leaf)) * leaf.dtype.itemsize


def collectives(text: str) -> list[list[str]]:
    """[operation, result shape] of every collective in an HLO text; a tuple's shapes with "+"."""
    found = re.findall(
        r"= (.*?) "
        r"(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(",
        text,
    )
    return sorted(
        [operation, "+".join(re.findall(r"\w+\[[\d,]*\]", shapes))] for shapes, operation in found
    )


def spoilt_collectives(mesh: Mesh) -> list[list[str]]:
    """Those of a step whose q, k and v are split along their input, which needs another sum."""
    spec = spec_of(unroll_layers=True)
    step = abstract_step(MODEL, spec, LIMITS, dtype="float32", mesh=mesh)
    leaves = tuple(
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(mesh, "heads", "embed"))
        if name.endswith((".q", ".k", ".v"))
        else leaf
        for leaf, name in zip(step.arguments[0], step.weight_names, strict=True)
    )
    text = compiled(replace(step, arguments=(leaves, *step.arguments[1:]))).as_text()
    assert text is not None
    return collectives(text)


def sparse_facts(model: ModelConfig, tensor: int, expert: int) -> dict[str, object]:
    """Facts of a mixture's step; its tokens are looked at in ``engines_on_eight_devices.py``."""
    mesh = make_mesh(jax.devices()[: tensor * expert], tensor=tensor, expert=expert)
    spec = spec_of(model, unroll_layers=True)
    step = abstract_step(model, spec, LIMITS, dtype="float32", mesh=mesh)
    return facts(compiled(step), step)


def main() -> None:
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    devices = jax.devices()
    meshes = {tensor: make_mesh(devices[:tensor], tensor=tensor) for tensor in (1, 2, 4, 8)}
    with ThreadPoolExecutor(2) as pool:
        cases = {
            str(tensor): pool.submit(prepare, mesh, unroll_layers=True)
            for tensor, mesh in meshes.items()
        }
        cases["looped 2"] = pool.submit(prepare, meshes[2], unroll_layers=False)
        spoilt = pool.submit(spoilt_collectives, meshes[8])
        sparse = {
            name: pool.submit(sparse_facts, model, tensor, expert)
            for name, model, tensor, expert in (
                ("sparse 2 x 2", SPARSE, 2, 2),
                ("sparse 1 x 4", SPARSE, 1, 4),
                ("sharing 2 x 2", SHARING, 2, 2),
            )
        }
    found: dict[str, Any] = {name: run(case.result()) for name, case in cases.items()}
    found |= {name: facts.result() for name, facts in sparse.items()}
    json.dump({**found, "spoilt": spoilt.result()}, sys.stdout)


if __name__ == "__main__":
    main()

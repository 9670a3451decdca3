"""Makes small_step.hlo: a step in miniature, compiled for two H100 that aren't there.

Run with the CUDA compiler's packages installed and JAX_PLATFORMS=cpu:
``python tests/plan/programs/make_small_step.py``.
It has what the reader of programs must tell apart: a product, a weight copied, an embedding
gathered, a page pool updated in place, a sum over devices, loops of known and unknown length, and a
conditional within a conditional.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    "--xla_gpu_enable_triton_gemm=false --xla_gpu_dot_merger_threshold_mb=0 "
    "--xla_gpu_enable_command_buffer=+COLLECTIVES,+CONDITIONAL,+WHILE"
)

import jax
import jax.numpy as jnp
from jax import jit, lax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from fastgen_jax.parallel.mesh import TENSOR, make_mesh
from fastgen_jax.plan.gpus import H100, target_config

TOKENS, WIDTH, VOCAB, PAGES = 64, 256, 512, 128


def step(embed, up, down, pages, tokens, places, flag):
    """Looks up, multiplies twice, writes to pages, draws in a conditional."""
    x = embed[tokens]
    y = lax.fori_loop(0, 3, lambda _, x: jnp.tanh(jnp.sort(x, axis=-1)), x)
    hidden = jax.nn.silu(y @ up) @ down
    pages = pages.at[places].set(hidden[:, None], mode="promise_in_bounds")
    hidden = lax.while_loop(lambda x: x.sum() < 0, lambda x: x * 2, hidden)

    def draw():
        logits = jnp.einsum("te,ve->tv", hidden, embed, preferred_element_type=jnp.float32)
        best = jnp.argmax(logits, -1)
        return lax.cond(flag[1] > 0, lambda: jnp.argsort(logits, -1)[:, 0], lambda: best)

    drawn = lax.cond(flag[0] > 0, draw, lambda: jnp.zeros_like(tokens))
    return pages, drawn, jnp.concatenate([up, up * 0], 1)


def main() -> None:
    """Compile and write."""
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=target_config(H100), topology="1x1x2"
    )
    mesh = make_mesh(topology.devices, tensor=2)

    def array(shape: tuple[int, ...], dtype: str, *axes: str | None) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)

    arguments = (
        array((VOCAB, WIDTH), "bfloat16"),
        array((WIDTH, 4 * WIDTH), "bfloat16", None, TENSOR),
        array((4 * WIDTH, WIDTH), "bfloat16", TENSOR, None),
        array((PAGES, 1, WIDTH), "bfloat16"),
        array((TOKENS,), "int32"),
        array((TOKENS,), "int32"),
        array((2,), "int32"),
    )
    with jax.set_mesh(mesh):
        text = jit(step, donate_argnums=(3,)).lower(*arguments).compile().as_text()
    assert text is not None
    text = text[: text.index("\n\n")] + text[text.index("\n%") :]  # without the source's lines
    text = re.sub(r'"(?:autotune_workspace_size|reification_cost|damax_output)":[^,}]*,', "", text)
    Path(__file__).with_name("small_step.hlo").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""The paged cache on the device, and how a layer writes to it and reads from it."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.decoder import Attend, LayerIndex
from pallas_kernels import AttentionWork, ReferenceConfig, ragged_paged_attention, write_kv

Pages = tuple[Array, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """Geometry of the cache: unrolled layers have a pool each, looped ones share a long one.

    A loop can't pick one of several donated pools without copying it, so there the L pools stand
    end to end in one array and layer l's page p is page ``l * N + p``.
    """

    num_layers: int
    num_blocks: int
    num_kv_heads: int
    block_size: int
    head_dim: int
    dtype: str
    unroll_layers: bool

    @property
    def num_pools(self) -> int:
        """Separate (k, v) pools."""
        return self.num_layers if self.unroll_layers else 1

    @property
    def pool_shape(self) -> tuple[int, int, int, int]:
        """Shape of every pool's k and v: pages, kv heads, slots, head size."""
        pages = self.num_blocks * self.num_layers // self.num_pools
        return (pages, self.num_kv_heads, self.block_size, self.head_dim)

    def abstract_pages(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the flat leaves k0, v0, k1, v1, …"""
        leaf = jax.ShapeDtypeStruct(self.pool_shape, jnp.dtype(self.dtype))
        return (leaf,) * (2 * self.num_pools)

    def zeros(self) -> Pages:
        """Empty pages on the default device."""
        return tuple(jnp.zeros(leaf.shape, leaf.dtype) for leaf in self.abstract_pages())


def cache_spec(
    model: ModelConfig, *, num_blocks: int, block_size: int, dtype: str, unroll_layers: bool
) -> CacheSpec:
    """The cache of a model."""
    return CacheSpec(
        num_layers=model.num_layers,
        num_blocks=num_blocks,
        num_kv_heads=model.num_kv_heads,
        block_size=block_size,
        head_dim=model.head_dim,
        dtype=dtype,
        unroll_layers=unroll_layers,
    )


def paged_attention(
    spec: CacheSpec,
    work: AttentionWork,
    config: ReferenceConfig,
    page_ids: Int[Array, "T"],
    slots: Int[Array, "T"],
) -> Attend[Pages]:
    """An Attend that writes the step's keys and values to their pages, then attends over them.

    The whole step's writes come before any read, so rows may share blocks filled in this step.
    """

    def attend(
        layer: LayerIndex,
        q: Float[Array, "T H D"],
        k: Float[Array, "T K D"],
        v: Float[Array, "T K D"],
        cache: Pages,
    ) -> tuple[Float[Array, "T H D"], Pages]:
        if isinstance(layer, int):
            pool, first_page = layer, jnp.int32(0)
        else:
            pool, first_page = 0, layer * jnp.int32(spec.num_blocks)
        k_pages = write_kv(cache[2 * pool], k, page_ids + first_page, slots)
        v_pages = write_kv(cache[2 * pool + 1], v, page_ids + first_page, slots)
        seen = ragged_paged_attention(
            q,
            k_pages,
            v_pages,
            work,
            first_page=first_page,
            scale=spec.head_dim**-0.5,
            config=config,
        )
        return seen, (*cache[: 2 * pool], k_pages, v_pages, *cache[2 * pool + 2 :])

    return attend

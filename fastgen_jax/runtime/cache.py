"""The paged cache on the device, and how a layer writes to it and reads from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from fastgen_jax.models.attention import Attend
from fastgen_jax.models.config import AttentionMath, ModelConfig
from fastgen_jax.models.layer import LayerIndex
from fastgen_jax.models.rope import Rotation
from fastgen_jax.parallel.sharding import PAGE_AXES, page_sharding, partition_spec
from pallas_kernels import (
    AttentionConfig,
    AttentionOptions,
    AttentionWork,
    KvWriteConfig,
    LayerPages,
    ragged_paged_attention,
    write_kv,
)
from pallas_kernels.native import native_zeros

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

    def abstract_pages(self, mesh: Mesh | None = None) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the flat leaves k0, v0, k1, v1, …; on a mesh each device has its kv heads."""
        sharding = None if mesh is None else page_sharding(mesh)
        leaf = jax.ShapeDtypeStruct(self.pool_shape, jnp.dtype(self.dtype), sharding=sharding)
        return (leaf,) * (2 * self.num_pools)

    def zeros(self, *, is_native: bool = False) -> Pages:
        """Empty pages on the default device; ``is_native`` for the native kernels of a CPU."""
        make = native_zeros if is_native else jnp.zeros
        return tuple(make(leaf.shape, leaf.dtype) for leaf in self.abstract_pages())


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
    math: AttentionMath,
    works: Mapping[int | None, AttentionWork],
    page_ids: Int[Array, "T"],
    slots: Int[Array, "T"],
    num_tokens: Int[Array, ""],
    *,
    attention: AttentionConfig,
    kv_write: KvWriteConfig,
    mesh: Mesh | None,
) -> Attend[Pages]:
    """An Attend that writes the step's keys and values to their pages, then attends over them.

    ``works`` has the step's work for every window that layers are unrolled with, and under None for
    looped ones. Tokens from ``num_tokens`` on are padding.

    The whole step's writes come before any read, so rows may share blocks filled in this step.
    On a mesh every device does so for its own heads, without communication.
    """

    def write_and_attend(
        q: Float[Array, "T H D"],
        k: Float[Array, "T K D"],
        v: Float[Array, "T K D"],
        k_pages: Float[Array, "N K S D"],
        v_pages: Float[Array, "N K S D"],
        rotation: Rotation | None,
        sinks: Float[Array, "H"] | None,
        where: _Where,
    ) -> tuple[Array, Array, Array]:
        k_pages, v_pages = write_kv(
            k_pages,
            v_pages,
            k,
            v,
            where.page_ids,
            where.slots,
            rotation=rotation,
            num_tokens=where.num_tokens,
            layer_pages=where.layer_pages,
            config=kv_write,
        )
        seen = ragged_paged_attention(
            q,
            k_pages,
            v_pages,
            where.work,
            rotation=rotation,
            layer_pages=where.layer_pages,
            options=AttentionOptions(
                scale=math.scale, window=where.static_window, softcap=math.softcap
            ),
            config=attention,
            sinks=sinks,
            window=where.window,
        )
        return seen, k_pages, v_pages

    run = write_and_attend if mesh is None else _over_heads(write_and_attend, mesh)

    def attend(
        layer: LayerIndex,
        q: Float[Array, "T H D"],
        k: Float[Array, "T K D"],
        v: Float[Array, "T K D"],
        rotation: Rotation | None,
        cache: Pages,
        *,
        window: int | Int[Array, ""] | None,
        sinks: Float[Array, "H"] | None,
    ) -> tuple[Float[Array, "T H D"], Pages]:
        if isinstance(layer, int):
            pool, layer_pages = layer, None
        else:
            pool, layer_pages = 0, LayerPages(layer=layer, pages_per_layer=spec.num_blocks)
        fixed = window if isinstance(window, int) else None
        where = _Where(
            work=works[fixed if isinstance(layer, int) else None],
            page_ids=page_ids,
            slots=slots,
            num_tokens=num_tokens,
            layer_pages=layer_pages,
            window=None if isinstance(window, int) else window,
            static_window=fixed,
        )
        seen, k_pages, v_pages = run(
            q, k, v, cache[2 * pool], cache[2 * pool + 1], rotation, sinks, where
        )
        return seen, (*cache[: 2 * pool], k_pages, v_pages, *cache[2 * pool + 2 :])

    return attend


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class _Where:
    """What a layer's attention needs besides heads and pages; the same on every device."""

    work: AttentionWork
    page_ids: Int[Array, "T"]
    slots: Int[Array, "T"]
    num_tokens: Int[Array, ""]
    layer_pages: LayerPages | None
    window: Int[Array, ""] | None
    static_window: int | None = field(metadata={"static": True})


def _over_heads(
    function: Callable[..., tuple[Array, Array, Array]], mesh: Mesh
) -> Callable[..., tuple[Array, Array, Array]]:
    heads = partition_spec("tokens", "heads", "head_dim")
    kv_heads = partition_spec("tokens", "kv_heads", "head_dim")
    pages = partition_spec(*PAGE_AXES)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(
            heads,
            kv_heads,
            kv_heads,
            pages,
            pages,
            partition_spec(),
            partition_spec("heads"),
            partition_spec(),
        ),
        out_specs=(heads, pages, pages),
        check_vma=False,
    )

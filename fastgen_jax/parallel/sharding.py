"""Which axis of which array is split over which axis of the mesh: one table for everything."""

from __future__ import annotations

from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from fastgen_jax.errors import UnsupportedModelError
from fastgen_jax.parallel.mesh import EXPERT, SHARED, TENSOR

# Logical axis -> axis of the mesh, None where every device holds all of it.
MESH_AXIS_OF: dict[str, str | tuple[str, ...] | None] = {
    "tokens": None,
    "vocab": SHARED,
    "embed": None,
    "heads": SHARED,
    "kv_heads": SHARED,
    "mlp": SHARED,
    "pages": None,
    "slots": None,
    "head_dim": None,
    "positions": None,
    "experts": EXPERT,
    "expert_mlp": TENSOR,
    "routes": None,  # every device chooses for every token
}

# Last part of a weight's name -> its logical axes. Matrices are stored [in, out]: those that
# produce heads or the feed-forward are split along the output, those that consume them along the
# input, so that a layer needs one sum over devices after "o" and one after "down".
WEIGHT_AXES: dict[str, tuple[str, ...]] = {
    "embed": ("vocab", "embed"),
    "embed_in": ("embed", "embed"),
    "embed_out": ("embed", "embed"),
    "positions": ("positions", "embed"),
    "attn_norm": ("embed",),
    "q": ("embed", "heads"),
    "k": ("embed", "kv_heads"),
    "v": ("embed", "kv_heads"),
    "o": ("heads", "embed"),
    "attn_post_norm": ("embed",),
    "attn_sum_norm": ("embed",),
    "q_norm": ("head_dim",),
    "k_norm": ("head_dim",),
    "q_bias": ("heads",),
    "k_bias": ("kv_heads",),
    "v_bias": ("kv_heads",),
    "o_bias": ("embed",),
    "sinks": ("heads",),
    "mlp_norm": ("embed",),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
    "gate_bias": ("mlp",),
    "up_bias": ("mlp",),
    "down_bias": ("embed",),
    "mlp_post_norm": ("embed",),
    "mlp_sum_norm": ("embed",),
    "router": ("embed", "routes"),
    "router_bias": ("routes",),
    "expert_gate": ("experts", "embed", "expert_mlp"),
    "expert_up": ("experts", "embed", "expert_mlp"),
    "expert_down": ("experts", "expert_mlp", "embed"),
    "expert_gate_bias": ("experts", "expert_mlp"),
    "expert_up_bias": ("experts", "expert_mlp"),
    "expert_down_bias": ("experts", "embed"),
    "shared_gate": ("embed", "mlp"),
    "shared_up": ("embed", "mlp"),
    "shared_down": ("mlp", "embed"),
    "shared_router": ("embed",),
    "final_norm": ("embed",),
    "head": ("vocab", "embed"),
    "head_bias": ("vocab",),
}

PAGE_AXES = ("pages", "kv_heads", "slots", "head_dim")


def partition_spec(*axes: str) -> PartitionSpec:
    """The split of an array with the given logical axes; without axes, an array on every device."""
    return PartitionSpec(*(MESH_AXIS_OF[axis] for axis in axes))


def sharding(mesh: Mesh, *axes: str) -> NamedSharding:
    """The sharding of an array with the given logical axes; without axes, replicated."""
    return NamedSharding(mesh, partition_spec(*axes))


def weight_sharding(mesh: Mesh, name: str) -> NamedSharding:
    """The sharding of a weight by its name in ``models.tensors.tensor_shapes``.

    Raises:
        UnsupportedModelError: the table has no entry for such a weight.
    """
    part = name.rsplit(".", 1)[-1]
    if part not in WEIGHT_AXES and part.removesuffix("_bias").endswith("_norm"):
        part = part.removesuffix("_bias")
    if part not in WEIGHT_AXES:
        raise UnsupportedModelError(
            "nothing is known about how to split this weight over devices",
            field="weight",
            value=name,
            remedy=f"give {part!r} its axes in WEIGHT_AXES, or run on one device",
        )
    return sharding(mesh, *WEIGHT_AXES[part])


def page_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a pool of keys or values [N, K, S, D]: each device has its kv heads."""
    return sharding(mesh, *PAGE_AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole: row state, inputs and results."""
    return sharding(mesh)


def constrain(array: Array, mesh: Mesh | None, *axes: str) -> Array:
    """The array, which XLA's partitioner must split by these logical axes; as is without a mesh."""
    if mesh is None:
        return array
    return lax.with_sharding_constraint(array, sharding(mesh, *axes))

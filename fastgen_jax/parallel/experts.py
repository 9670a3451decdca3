"""A mixture's experts, dealt out over the devices of a mesh."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from fastgen_jax.models.moe import ExpertsFunction, OverExperts, on_one_device
from fastgen_jax.parallel.mesh import EXPERT, SHARED, TENSOR
from fastgen_jax.parallel.sharding import WEIGHT_AXES, partition_spec


def over_experts(mesh: Mesh | None) -> OverExperts:
    """How a mixture runs its experts on a mesh: every device those that it has, in one sum.

    A device computes its part of its experts' feed-forwards. Its results and the others' are added
    in one all-reduce over the whole mesh.
    """
    if mesh is None:
        return on_one_device

    def run(
        function: ExpertsFunction, arrays: Mapping[str, Array], operands: tuple[Array, ...]
    ) -> Float[Array, "T E"]:
        def on_device(arrays: dict[str, Array], operands: tuple[Array, ...]) -> Array:
            count = arrays["expert_up"].shape[0]
            first = lax.axis_index(EXPERT) * jnp.int32(count)
            # A bias behind the sum over a feed-forward's parts belongs to one of them.
            is_first = lax.axis_index(TENSOR) == 0
            return lax.psum(function(arrays, first, is_first, *operands), SHARED)

        specs = {name: partition_spec(*WEIGHT_AXES[name]) for name in arrays}
        return jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(specs, partition_spec()),
            out_specs=partition_spec(),
            check_vma=False,
        )(dict(arrays), operands)

    return run

"""Work on whole rows of logits, shared out over devices that each hold a part of every row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from fastgen_jax.parallel.mesh import SHARED, num_shares
from fastgen_jax.parallel.sharding import partition_spec


def map_rows(
    function: Callable[..., Any],
    mesh: Mesh | None,
    logits: Float[Array, "R V"],
    per_row: tuple[Array, ...],
    shared: Any,
) -> Any:
    """``function(logits, per_row, shared)`` where every device computes an equal share of the rows.

    The logits change hands in one all-to-all, from a part of every row's vocabulary to all of some
    rows' vocabulary, so that no device ever receives more than its share of them.

    Args:
        function: computes each row from that row and what is shared; may be given fewer rows.
        mesh: the devices; None calls the function as it is.
        logits: split over the vocabulary.
        per_row: small arrays [R, ...] that every device holds whole.
        shared: a pytree that every device holds whole.

    Returns:
        A pytree of arrays [R, ...], whole on every device.
    """
    if mesh is None:
        return function(logits, per_row, shared)
    num_rows, shares = logits.shape[0], num_shares(mesh)
    share = -(-num_rows // shares)

    def pad(array: Array) -> Array:
        missing = share * shares - num_rows
        return jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))

    def run(logits: Array, per_row: tuple[Array, ...], shared: Any) -> Any:
        mine = lax.all_to_all(pad(logits), SHARED, split_axis=0, concat_axis=1, tiled=True)
        first = lax.axis_index(SHARED) * jnp.int32(share)
        of_mine = tuple(lax.dynamic_slice_in_dim(pad(array), first, share) for array in per_row)
        found = function(mine, of_mine, shared)
        return jax.tree.map(lambda x: lax.all_gather(x, SHARED, tiled=True)[:num_rows], found)

    whole = partition_spec()
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(partition_spec("tokens", "vocab"), whole, whole),
        out_specs=whole,
        check_vma=False,
    )(logits, per_row, shared)

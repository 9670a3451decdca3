"""The one mesh of devices that a step is laid over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax import Device
from jax.sharding import AxisType, Mesh

from fastgen_jax.errors import ConfigError

DATA = "data"
TENSOR = "tensor"
EXPERT = "expert"
MESH_AXES = (DATA, TENSOR, EXPERT)
# What isn't an expert's is split over the devices of both: none of them repeats another's work.
SHARED = (TENSOR, EXPERT)


def make_mesh(
    devices: Sequence[Device],  # pyright: ignore[reportInvalidTypeForm]
    *,
    data: int = 1,
    tensor: int = 1,
    expert: int = 1,
) -> Mesh:
    """The devices as a mesh with the axes ``MESH_AXES``; real and compile-only devices alike.

    Its axes are of the kind Auto: XLA's partitioner finds what the step doesn't say. Experts are
    dealt out over ``expert`` and each is split over ``tensor``; all else is split over both.

    Raises:
        ConfigError: a size below 1, more than one device along data, or another number of devices
            than the sizes ask for.
    """
    sizes = dict(zip(MESH_AXES, (data, tensor, expert), strict=True))
    for axis, size in sizes.items():
        if size < 1:
            raise ConfigError("must be at least 1", field=axis, value=size, remedy="use 1 or more")
    if data > 1:
        raise ConfigError(
            "replicas of a model in one engine aren't implemented",
            field=DATA,
            value=data,
            remedy=f"use {DATA}=1 and put the devices along {TENSOR} or {EXPERT}",
        )
    if len(devices) != tensor * expert:
        raise ConfigError(
            f"the mesh needs {tensor * expert} devices and was given {len(devices)}",
            field=TENSOR,
            value=tensor,
            remedy=f"pass {tensor * expert} devices, or use {TENSOR}={len(devices)}",
        )
    grid = np.asarray(devices, dtype=object).reshape(tuple(sizes.values()))
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def num_shares(mesh: Mesh | None) -> int:
    """Devices that share the heads, the feed-forward and the vocabulary; 1 without a mesh."""
    return 1 if mesh is None else mesh.shape[TENSOR] * mesh.shape[EXPERT]

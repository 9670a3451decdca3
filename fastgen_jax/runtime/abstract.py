"""A step without weights: its function and the shapes of its arguments, ready to be compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from fastgen_jax.models.config import ModelConfig
from fastgen_jax.models.decoder import Decoder, Weights
from fastgen_jax.parallel.division import check_divisible
from fastgen_jax.parallel.mesh import EXPERT, TENSOR
from fastgen_jax.parallel.sharding import replicated, weight_sharding
from fastgen_jax.runtime.step import SplitModel, StepSpec, build_step
from fastgen_jax.runtime.weights import abstract_dense
from fastgen_jax.sampling import RowLimits, init_row_state

STEP_ARGUMENTS = ("weights", "pages", "row_state", "packed_inputs")
STEP_DONATED = ("pages", "row_state")


@dataclass(frozen=True, slots=True, kw_only=True)
class AbstractStep:
    """One step's function with everything that its compilation needs, and no array.

    ``step.lower().compile()`` compiles it for the mesh it was made for; without one, for jax's
    default device.

    Attributes:
        function: (weights, pages, row state, packed inputs) to (pages, row state, packed results).
        arguments: its arguments as ShapeDtypeStructs, with shardings where there is a mesh.
        argument_names: what they are called.
        donate_argnums: places of the arguments that are updated in place.
        weight_names: the name in ``tensor_shapes`` of each leaf of ``arguments[0]``.
        description: everything static that the function was built from; its repr is a cache key.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    argument_names: tuple[str, ...]
    donate_argnums: tuple[int, ...]
    weight_names: tuple[str, ...]
    description: object

    def lower(self) -> jax.stages.Lowered:
        """The step traced and lowered, ready to be compiled."""
        return jax.jit(self.function, donate_argnums=self.donate_argnums).lower(*self.arguments)


def abstract_step(
    model: ModelConfig,
    spec: StepSpec,
    limits: RowLimits,
    *,
    dtype: str | jnp.dtype,
    mesh: Mesh | None = None,
) -> AbstractStep:
    """The step of a model for a mesh of real or compile-only devices; touches no device.

    Args:
        model: shape of the decoder; with a kv head at least for every device of the mesh, as
            ``with_repeated_kv_heads`` gives it.
        spec: the step's shape, cache and attention.
        limits: sizes of the row state.
        dtype: of the weights; that of the pages is in ``spec.cache``.
        mesh: devices to shard the step over; None compiles for the default device.

    Raises:
        ConfigError: the model can't be split evenly over the mesh.
    """
    if mesh is not None:
        check_divisible(model, mesh.shape[TENSOR], mesh.shape[EXPERT])
    return abstract_step_of(abstract_split(model, abstract_dense(model, dtype)), spec, limits, mesh)


def abstract_step_of(
    split: SplitModel, spec: StepSpec, limits: RowLimits, mesh: Mesh | None = None
) -> AbstractStep:
    """``abstract_step`` of a model that is split already, where several steps share one."""
    weights = split.leaves
    rows = jax.eval_shape(lambda: init_row_state(limits))
    packed = jax.ShapeDtypeStruct((spec.inputs.size,), jnp.int32)
    if mesh is not None:
        names = zip(weights, split.weight_names, strict=True)
        weights = tuple(_shard(leaf, weight_sharding(mesh, name)) for leaf, name in names)
        rows, packed = jax.tree.map(lambda leaf: _shard(leaf, replicated(mesh)), (rows, packed))
    return AbstractStep(
        function=build_step(split, spec, mesh),
        arguments=(weights, spec.cache.abstract_pages(mesh), rows, packed),
        argument_names=STEP_ARGUMENTS,
        donate_argnums=tuple(STEP_ARGUMENTS.index(name) for name in STEP_DONATED),
        weight_names=split.weight_names,
        description=(spec, str(split.treedef), None if mesh is None else mesh.shape_tuple),
    )


def abstract_split(model: ModelConfig, weights: Weights) -> SplitModel:
    """The split model with shapes in place of weights."""
    return SplitModel.of(Decoder(model, weights))


def _shard(leaf: jax.ShapeDtypeStruct | Array, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

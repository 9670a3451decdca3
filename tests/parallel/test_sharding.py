"""The sharding table, the mesh, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import jax
import pytest
from jax.sharding import PartitionSpec

from fastgen_jax.errors import ConfigError, UnsupportedModelError
from fastgen_jax.models.config import LearnedPositions, NormPlace, QueryKeyNorm, llama_config
from fastgen_jax.models.families.parts import mixture_of
from fastgen_jax.models.tensors import ATTENTION_MATRICES, MLP_MATRICES, tensor_shapes
from fastgen_jax.parallel.mesh import MESH_AXES, SHARED, make_mesh, num_shares
from fastgen_jax.parallel.sharding import (
    page_sharding,
    replicated,
    weight_sharding,
)

MODEL = llama_config(
    vocab_size=96,
    hidden_size=24,
    intermediate_size=48,
    num_layers=2,
    num_heads=12,
    num_kv_heads=6,
    head_dim=4,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    tie_word_embeddings=False,
)


def one_device_mesh() -> jax.sharding.Mesh:
    return make_mesh(jax.devices()[:1])


@pytest.mark.parametrize(
    ("names", "spec"),
    [
        (("embed", "head"), PartitionSpec(SHARED, None)),
        (("layers.1.q", "layers.0.k", "layers.1.v"), PartitionSpec(None, SHARED)),
        (("layers.0.gate", "layers.1.up"), PartitionSpec(None, SHARED)),
        (("layers.0.o", "layers.1.down"), PartitionSpec(SHARED, None)),
        (("final_norm", "layers.0.attn_norm", "layers.1.mlp_norm"), PartitionSpec(None)),
    ],
)
def test_how_each_weight_is_split(names: tuple[str, ...], spec: PartitionSpec) -> None:
    for name in names:
        assert weight_sharding(one_device_mesh(), name).spec == spec


def test_every_weight_of_a_model_has_as_many_axes_as_in_the_table() -> None:
    for name, shape in tensor_shapes(MODEL).items():
        assert len(weight_sharding(one_device_mesh(), name).spec) == len(shape), name


def test_so_has_every_weight_that_a_model_can_have() -> None:
    norm = replace(MODEL.norm, has_bias=True)
    moe = replace(
        mixture_of(4, 2, 48),
        shared_intermediate_size=48,
        has_shared_gate=True,
        has_router_bias=True,
        has_expert_biases=True,
    )
    model = replace(
        MODEL,
        layers=(MODEL.layers[0], replace(MODEL.layers[1], is_sparse=True)),
        learned_positions=LearnedPositions(count=64, offset=0),
        norm=norm,
        norms=get_args(NormPlace),
        attention=replace(
            MODEL.attention,
            has_sinks=True,
            query_key_norm=QueryKeyNorm(norm=norm, over="all_heads"),
        ),
        moe=moe,
        biases=(*ATTENTION_MATRICES, *MLP_MATRICES),
        embedding_size=16,
        has_head_bias=True,
    )
    shapes = tensor_shapes(model)
    assert len(shapes) > 60
    for name, shape in shapes.items():
        assert len(weight_sharding(one_device_mesh(), name).spec) == len(shape), name


def test_pages_are_split_over_kv_heads_and_the_rest_is_everywhere() -> None:
    mesh = one_device_mesh()
    assert page_sharding(mesh).spec == PartitionSpec(None, SHARED, None, None)
    assert replicated(mesh).spec == PartitionSpec()


def test_an_unknown_weight_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.other.*WEIGHT_AXES"):
        weight_sharding(one_device_mesh(), "layers.0.other")


def test_a_mesh_has_all_axes_and_leaves_the_rest_to_the_partitioner() -> None:
    mesh = one_device_mesh()
    assert mesh.axis_names == MESH_AXES == ("data", "tensor", "expert")
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert num_shares(mesh) == num_shares(None) == 1


def test_replicas_of_the_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="data=2: replicas of a model"):
        make_mesh(jax.devices()[:1] * 2, data=2)


def test_a_size_below_1_is_refused() -> None:
    with pytest.raises(ConfigError, match="tensor=0: must be at least 1"):
        make_mesh([], tensor=0)


def test_the_number_of_devices_must_be_that_of_the_mesh() -> None:
    with pytest.raises(ConfigError, match=r"tensor=4: the mesh needs 4 devices .* given 1"):
        make_mesh(jax.devices()[:1], tensor=4)

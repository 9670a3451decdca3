"""What is read out of a compiled program: shapes, traffic, copies, loops and branches."""

from __future__ import annotations

import pytest

from fastgen_jax.plan.hlo import HloModule, Shape, parse_hlo
from fastgen_jax.plan.launches import Launch, copies, step_launches
from fastgen_jax.plan.origins import StepArguments

ARGUMENTS = StepArguments(
    weight_names=("embed", "layers.0.up", "layers.0.down"),
    num_pages=1,
)
T, E, F, V = 64, 256, 512, 512  # F is one device's share


@pytest.fixture(scope="module")
def launches(small_step: HloModule) -> tuple[Launch, ...]:
    return step_launches(small_step, ARGUMENTS).launches


def the(launches: tuple[Launch, ...], kind: str, name: str) -> Launch:
    (found,) = (item for item in launches if (item.kind, item.name) == (kind, name))
    return found


def test_products_have_their_sizes_and_flops(launches: tuple[Launch, ...]) -> None:
    up = the(launches, "gemm", "up")
    assert up.sizes == (1, T, F, E)
    assert up.flops == 2 * T * F * E
    assert up.read == 2 * (T * E + E * F)
    assert up.written == 2 * T * F  # without the library's scratch space
    head = the(launches, "gemm", "embed")
    assert (head.sizes, head.written) == ((1, T, V, E), 4 * T * V)


def test_a_gather_reads_what_it_takes(launches: tuple[Launch, ...]) -> None:
    lookup = the(launches, "fusion", "embed")
    assert lookup.read == 2 * T * E + 4 * T  # rows and indices, not the table
    assert lookup.written == 2 * T * E


def test_an_update_in_place_writes_what_it_changes(launches: tuple[Launch, ...]) -> None:
    write = the(launches, "kv write", "kv write")
    assert write.written == 2 * T * E
    assert write.read == 2 * T * E + 4 * T


def test_a_copied_weight_is_noticed(launches: tuple[Launch, ...]) -> None:
    found = list(copies(launches, "weight"))
    assert [item.name for item in found] == ["up"]
    assert found[0].written >= 2 * E * F
    assert not list(copies(launches, "kv"))


def test_collectives_have_bytes_and_devices(launches: tuple[Launch, ...]) -> None:
    total = the(launches, "collective", "all-reduce")
    assert (total.count, total.num_devices, total.read) == (1, 2, 2 * T * E)


def test_loops_turn_as_often_as_xla_knows(launches: tuple[Launch, ...]) -> None:
    assert the(launches, "fusion", "sort").count == 3


def test_loops_of_unknown_length_and_conditionals_are_told(small_step: HloModule) -> None:
    found = step_launches(small_step, ARGUMENTS)
    assert found.loops == ("jit(step)/while",)
    assert [note.split(": ")[1] for note in found.conditionals] == [
        "the dearer branch",
        "the cheaper branch",
    ]
    assert not any("argsort" in item.name for item in found.launches)


def test_donated_arguments_are_seen(small_step: HloModule) -> None:
    assert small_step.aliases == {0: 3}


def test_shapes_know_their_bytes() -> None:
    assert Shape("bf16", (2, 3)).num_bytes == 12
    assert Shape("s4", (2, 3)).num_bytes == 3
    assert Shape("f8e4m3fn", (5,)).num_bytes == 5
    assert Shape("token", ()).num_bytes == 0
    assert str(Shape("f32", (4, 1))) == "f32[4,1]"


def test_a_text_without_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="no entry computation"):
        parse_hlo("HloModule nothing\n")


CUSTOM_CALLS = """HloModule m, is_scheduled=true

%dynamic-slice-fusion (p0: bf16[64,8,128], p1: bf16[100,2,32,128], p2: bf16[64,8,128]) -> tuple {
  %p0 = bf16[64,8,128]{2,1,0} parameter(0)
  %p1 = bf16[100,2,32,128]{3,2,1,0} parameter(1)
  %p2 = bf16[64,8,128]{2,1,0} parameter(2)
  %view = bf16[64,8,128]{2,1,0} bitcast(%p0)
  ROOT %call = (bf16[64,8,128]{2,1,0}, f32[64,8]{1,0}) custom-call(%view, %p1, %p2), \
custom_call_target="__gpu$xla.gpu.triton", output_to_operand_aliasing={{0}: (2, {})}, \
metadata={op_name="jit(step)/pallas_call"}, \
backend_config={grid_x = 16 : i32, ir = "ML", name = "attention", num_warps = 4 : i32}
}

ENTRY %main (q: bf16[64,8,128], pages: bf16[100,2,32,128]) -> bf16[64,8,128] {
  %q = bf16[64,8,128]{2,1,0} parameter(0)
  %pages = bf16[100,2,32,128]{3,2,1,0} parameter(1)
  %k = bf16[64,2,128]{2,1,0} parameter(2)
  %out = bf16[64,8,128]{2,1,0} parameter(3)
  %write = bf16[100,2,32,128]{3,2,1,0} custom-call(%k, %pages), \
custom_call_target="mosaic_gpu_v2", output_to_operand_aliasing={{}: (1, {})}, \
metadata={op_name="jit(step)/shard_map/kv_write/mpmd_map"}
  %attend = (bf16[64,8,128]{2,1,0}, f32[64,8]{1,0}) fusion(%q, %write, %out), kind=kCustom, \
calls=%dynamic-slice-fusion
  %seen = bf16[64,8,128]{2,1,0} get-tuple-element(%attend), index=0
  %parts = f32[64,8]{1,0} get-tuple-element(%attend), index=1
  ROOT %merged = bf16[64,8,128]{2,1,0} custom-call(%seen, %parts), \
custom_call_target="__gpu$xla.gpu.triton", output_to_operand_aliasing={{}: (0, {})}, \
metadata={op_name="jit(step)/pallas_call"}, backend_config={name = "merge"}
}
"""


def test_kernels_of_ours_are_told_apart_by_the_pool() -> None:
    found = step_launches(
        parse_hlo(CUSTOM_CALLS), StepArguments(weight_names=("q",), num_pages=1)
    ).launches
    write, attend, merge = found
    assert (write.kind, write.pallas_name) == ("kv write", "kv_write")
    assert write.read == write.written == 64 * 2 * 128 * 2  # not the pool
    assert (attend.kind, attend.pallas_name) == ("attention", "attention")
    # What it reads of the pool depends on the context and comes later.
    assert (attend.read, attend.written) == (2 * 64 * 8 * 128 * 2, 64 * 8 * (128 * 2 + 4))
    assert (merge.kind, merge.pallas_name) == ("pallas", "merge")


def test_groups_of_devices_are_read_in_each_spelling() -> None:
    groups = {
        "replica_groups={{0,1,2,3}}": 4,
        "replica_groups=[2,8]<=[16]": 8,
        "replica_groups=mesh['data'=1,'tensor'=6] {'tensor'}": 6,
    }
    for spelling, size in groups.items():
        text = (
            "HloModule m\n\nENTRY %main (x: f32[8]) -> f32[8] {\n"
            "  %x = f32[8]{0} parameter(0)\n"
            f"  ROOT %sum = f32[8]{{0}} all-reduce(%x), {spelling}, to_apply=%add\n}}\n"
        )
        (launch,) = step_launches(
            parse_hlo(text), StepArguments(weight_names=(), num_pages=0)
        ).launches
        assert launch.num_devices == size, spelling

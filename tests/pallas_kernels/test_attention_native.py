"""The native attention under the shared tests, on several threads, and with faults put into it."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import AttentionNative, plan_work, ragged_paged_attention
from pallas_kernels.kv_write.reference import rotate
from pallas_kernels.layer_pages import LayerPages
from pallas_kernels.native import native_library, native_obstacle, set_num_threads
from pallas_kernels.native.build import (
    FLAGS,
    ROOT,
    find_compiler,
    header_folder,
    instruction_sets,
)
from pallas_kernels.ragged_paged_attention.native import (
    NativeWork,
    ragged_paged_attention_native,
)
from tests.pallas_kernels.attention_contract import (
    SCENARIOS,
    AttentionContract,
    Scenario,
    mix,
)
from tests.pallas_kernels.dense_attention import AttentionInputs

pytestmark = [
    pytest.mark.usefixtures("jax_strict"),
    pytest.mark.skipif(
        native_obstacle() is not None, reason=f"no native kernels: {native_obstacle()}"
    ),
]

# A row of these keys is cut into splits of 256.
LONG = ((1, 256), (1, 257), (1, 700), (1, 1025))


@pytest.fixture(params=[1, 2, 5], autouse=True)
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    library = native_library()
    assert library is not None
    before = library.functions.fastgen_num_threads()
    set_num_threads(request.param)
    yield
    set_num_threads(before)


def attend_native(scenario: Scenario, inputs: AttentionInputs, layer: int = 0) -> np.ndarray:
    """The public call, compiled."""
    extras = scenario.extras
    arrays = {
        name: None if values is None else jnp.asarray(values)
        for name, values in (
            ("sinks", extras.sinks),
            ("k_scales", extras.k_scales),
            ("v_scales", extras.v_scales),
        )
    }
    seen = _attend(inputs, arrays, jnp.int32(layer), scenario)
    return of_rows(seen, scenario)


def of_rows(seen: jax.Array, scenario: Scenario) -> np.ndarray:
    """Results in float64; zeros for the tokens of no row, which hold what the memory held."""
    count = sum(queries for queries, _ in scenario.case.rows)
    result = np.zeros(seen.shape)
    # A test that empties some of the rows leaves their tokens as the memory was, NaNs included.
    with np.errstate(invalid="ignore"):
        result[:count] = np.asarray(seen[:count], np.float64)
    return result


@functools.partial(jax.jit, static_argnums=3)
def _attend(
    inputs: AttentionInputs,
    extras: dict[str, jax.Array | None],
    layer: jax.Array,
    scenario: Scenario,
) -> jax.Array:
    config = AttentionNative()
    work = plan_work(inputs.batch, shape=scenario.shape, config=config, window=scenario.window)
    return ragged_paged_attention(
        inputs.q,
        inputs.k_pages,
        inputs.v_pages,
        work,
        options=scenario.options,
        config=config,
        layer_pages=LayerPages(layer=layer, pages_per_layer=inputs.k_pages.shape[0] // 2),
        **extras,
    )


def check(scenario: Scenario) -> None:
    """Equal to dense attention."""
    inputs = scenario.inputs()
    scenario.check(attend_native(scenario, inputs), inputs)


class TestNative(AttentionContract):
    """The library that was built for this processor."""

    def attend(self, scenario: Scenario, inputs: AttentionInputs) -> np.ndarray:
        """The kernel's result."""
        return attend_native(scenario, inputs)

    @pytest.mark.parametrize("head_dim", [8, 16, 24, 72, 80, 96, 128, 256])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_head_sizes(self, head_dim: int, dtype: str) -> None:
        check(Scenario(case=mix(num_heads=4, num_kv_heads=2, head_dim=head_dim, dtype=dtype)))

    @pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 11, 33, 96])
    def test_groups(self, group: int) -> None:
        check(Scenario(case=mix(num_heads=group, num_kv_heads=1)))

    @pytest.mark.parametrize("page_size", [1, 7, 32])
    def test_page_sizes(self, page_size: int) -> None:
        check(Scenario(case=mix(num_heads=6, num_kv_heads=2, page_size=page_size), window=30))

    @pytest.mark.parametrize("kv_dtype", ["float8_e4m3fn", "float8_e5m2"])
    def test_8_bit_pages_of_float32_queries(self, kv_dtype: str) -> None:
        check(Scenario(case=mix(num_heads=3, num_kv_heads=1), kv_dtype=kv_dtype, has_sinks=True))

    @pytest.mark.parametrize("window", [None, 1, 256, 300])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_long_rows_and_chunks(self, window: int | None, dtype: str) -> None:
        """Several splits; several tiles of a chunk, each with several blocks of keys."""
        case = mix(num_heads=3, num_kv_heads=1, dtype=dtype)
        case = replace(
            case, rows=(*LONG, (90, 400), (40, 40)), num_tokens=140, max_rows=7, pages_per_row=80
        )
        check(Scenario(case=case, window=window, has_sinks=True, softcap=3.0))


def test_a_split_row_is_the_same_on_any_number_of_threads() -> None:
    """To the last bit, alone or not."""
    case = replace(mix(num_heads=3, num_kv_heads=1), rows=LONG, pages_per_row=80)
    scenario = Scenario(case=case)
    inputs = scenario.inputs()
    results = []
    for threads in (1, 2, 3, 8):
        set_num_threads(threads)
        results.append(attend_native(scenario, inputs)[: len(LONG)])
    batch = inputs.batch
    last = len(LONG) - 1

    def first(values: jax.Array) -> jax.Array:
        return values.at[0].set(values[last])

    alone = replace(
        inputs,
        q=first(inputs.q),
        batch=replace(
            batch,
            kv_len=first(batch.kv_len),
            block_tables=first(batch.block_tables),
            num_single_rows=jnp.int32(1),
            num_rows=jnp.int32(1),
        ),
    )
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0], strict=True)
    np.testing.assert_array_equal(attend_native(scenario, alone)[0], results[0][last])


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"),
    [("float32", None), ("bfloat16", None), ("bfloat16", "float8_e4m3fn")],
)
def test_a_row_is_the_same_however_many_kv_heads_go_together(
    dtype: str, kv_dtype: str | None
) -> None:
    """One thread takes them together, many threads singly: there are too few rows for them."""
    case = replace(
        mix(num_heads=12, num_kv_heads=4, dtype=dtype),
        rows=(*((1, 20 + row) for row in range(9)), (1, 290)),
        pages_per_row=20,
    )
    scenario = Scenario(case=case, kv_dtype=kv_dtype, has_sinks=True)
    inputs = scenario.inputs()
    results = []
    for threads in (1, 2, 16):
        set_num_threads(threads)
        results.append(attend_native(scenario, inputs))
    scenario.check(results[0], inputs)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0], strict=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rotary_half", [32, 8])
def test_the_kernel_rotates_queries(dtype: str, rotary_half: int) -> None:
    """As if they had been rotated before, but for a rounding less."""
    scenario = Scenario(case=mix(num_heads=3, num_kv_heads=1, dtype=dtype))
    inputs = scenario.inputs()
    angles = np.random.default_rng(3).uniform(0, 6, (scenario.case.num_tokens, rotary_half))
    rotation = (
        jnp.asarray(np.cos(angles), jnp.float32),
        jnp.asarray(np.sin(angles), jnp.float32),
    )
    config = AttentionNative()
    seen = ragged_paged_attention(
        inputs.q,
        inputs.k_pages,
        inputs.v_pages,
        plan_work(inputs.batch, shape=scenario.shape, config=config),
        options=scenario.options,
        config=config,
        rotation=rotation,
    )
    turned = replace(inputs, q=rotate(inputs.q, rotation))
    scenario.check(of_rows(seen, scenario), turned)


def test_pages_of_a_later_layer() -> None:
    scenario = SCENARIOS["group of 4"]
    inputs = scenario.inputs()
    pools = [
        jnp.concatenate([jnp.full_like(p, jnp.nan), p]) for p in (inputs.k_pages, inputs.v_pages)
    ]
    both = replace(inputs, k_pages=pools[0], v_pages=pools[1])
    seen = attend_native(scenario, both, layer=1)
    scenario.check(seen, inputs)


FOLDER = "ragged_paged_attention"
FAULTS = {
    "no fault": ("cpu.h", "// Causal", "// Causal"),
    "no causal mask": ("cpu_tile.h", "score = last < key ? hidden", "score = last < 0 ? hidden"),
    "a window of a key more": ("cpu_tile.h", "last - window >= key", "last - window > key"),
    "tail not cleared": (
        "cpu_group.h",
        "std::fill(scores + count, scores + padded, -INFINITY);",
        "",
    ),
    "splits merged without their tops": (
        "cpu_decode.h",
        "std::exp(split(i).top(head) - top);",
        "1.0f;",
    ),
    "only the second split": (
        "cpu_decode.h",
        "int64_t i = 0; i < num_splits",
        "int64_t i = 1; i < 2",
    ),
    "older values don't fade": ("cpu_tile.h", "v * kLanes) * fading[v];", "v * kLanes);"),
    "the first block again and again": ("cpu_decode.h", "at = places + first;", "at = places;"),
    "the first kv head for all": (
        "cpu_decode.h",
        "head * head_bytes_, block_count",
        "0, block_count",
    ),
    "values of one key instead of two": (
        "cpu_group.h",
        "i < kKeys; ++i) sum +=",
        "i < 1; ++i) sum +=",
    ),
}
FAULTY = Scenario(
    case=replace(
        mix(num_heads=6, num_kv_heads=2),
        rows=((1, 301), (1, 700), (9, 81), (90, 403)),
        num_tokens=110,
        max_rows=5,
        pages_per_row=48,
    ),
    window=290,
)


def build_with(fault: str, folder: Path) -> ctypes.CDLL:
    """The attention's library from a copy of the source with a piece of text exchanged."""
    sources = folder / "sources"
    for name in (FOLDER, "native"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("lib", "*.py"))
    name, old, new = FAULTS[fault]
    source = sources / FOLDER / name
    text = source.read_text()
    assert old in text, f"{name} no longer has {old!r}: bring the fault along"
    source.write_text(text.replace(old, new))
    library = native_library()
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no C++ compiler")
    assert library is not None
    kind = next(kind for kind in instruction_sets() if kind.name == library.instruction_set)
    files = [sources / FOLDER / "cpu.cc", sources / FOLDER / "cpu_ffi.cc"]
    files.append(sources / "native" / "thread_pool.cc")
    target = folder / "faulty.so"
    subprocess.run(
        [
            *(compiler, *FLAGS, "-O1", *kind.flags, "-shared"),
            *(f"-I{sources}", f"-isystem{header_folder()}"),
            *map(str, files),
            *("-o", str(target)),
        ],
        check=True,
        timeout=300,
    )
    return ctypes.CDLL(str(target))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("_threads", [1], indirect=True)
def test_a_fault_is_caught(fault: str, tmp_path: Path) -> None:
    """By the check of the contract, which passes without a fault."""
    functions = build_with(fault, tmp_path)
    functions.fastgen_set_num_threads(1)  # one thread takes all kv heads of a split together
    target = "test_attention_" + fault.replace(" ", "_").replace("'", "")
    jax.ffi.register_ffi_target(
        target, jax.ffi.pycapsule(functions.fastgen_attention), platform="cpu"
    )
    inputs = FAULTY.inputs()
    work = plan_work(inputs.batch, shape=FAULTY.shape, config=AttentionNative())
    assert isinstance(work, NativeWork)
    seen = ragged_paged_attention_native(
        inputs.q,
        inputs.k_pages,
        inputs.v_pages,
        work,
        layer_pages=None,
        options=FAULTY.options,
        target=target,
    )
    result = of_rows(seen, FAULTY)
    if fault == "no fault":
        FAULTY.check(result, inputs)
        return
    with pytest.raises(AssertionError):
        FAULTY.check(result, inputs)

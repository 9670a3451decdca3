"""The step over 1, 2, 4 and 8 devices: the same tokens, and no more communication than it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("on_eight_devices.py")
SHARDED = ["2", "4", "8", "looped 2"]
SPARSE = ["sparse 2 x 2", "sparse 1 x 4", "sharing 2 x 2"]  # tensor x expert
LAYERS, TOKENS, ROWS, EMBED, VOCAB = 2, 16, 3, 64, 1000
# Sums over devices add the same float32 products in another order.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What ``on_eight_devices.py`` prints; jax in this process keeps its one device."""
    environment = os.environ | {
        # Machine code that isn't optimized compiles in half the time; what is tested comes before.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, str(PROGRAM)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_one_device_of_a_mesh_communicates_nothing_but_its_own_tokens(
    found: dict[str, Any],
) -> None:
    assert found["1"]["collectives"] == [["all-gather", f"s32[{ROWS}]"]]
    requests = [request for request, _ in found["1"]["tokens"]]
    assert Counter(requests) == {0: 5, 1: 6, 2: 6}
    assert len({token for _, token in found["1"]["tokens"]}) > 8  # no model stuck on a token


@pytest.mark.parametrize("case", SHARDED)
def test_the_same_tokens_on_any_number_of_devices(found: dict[str, Any], case: str) -> None:
    """Greedy and drawn ones, through a chunked prefill and decodes."""
    assert found[case]["tokens"] == found["1"]["tokens"]


@pytest.mark.parametrize("field", ["logprobs", "k_pages", "v_pages"])
@pytest.mark.parametrize("case", SHARDED)
def test_the_same_numbers_on_any_number_of_devices(
    found: dict[str, Any], case: str, field: str
) -> None:
    expected = np.array(found["1"][field])
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found[case][field], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", SHARDED)
def test_two_sums_a_layer_and_one_for_the_embedding(found: dict[str, Any], case: str) -> None:
    assert collectives(found, case, "all-reduce") == [f"f32[{TOKENS},{EMBED}]"] * (2 * LAYERS + 1)


@pytest.mark.parametrize("case", SHARDED)
def test_nothing_else_is_exchanged_but_logits_and_tokens(found: dict[str, Any], case: str) -> None:
    """One all-to-all of logits; of whole logits, only a device's share of rows for logprobs."""
    devices = int(case.split()[-1])
    share = -(-ROWS // devices)
    assert collectives(found, case, "all-to-all") == [exchanged_logits(share, devices)]
    assert collectives(found, case, "all-gather") == [
        f"f32[{share},{VOCAB}]",
        f"s32[{share * devices}]",
    ]
    kinds = {operation for operation, _ in found[case]["collectives"]}
    assert kinds == {"all-reduce", "all-to-all", "all-gather"}


@pytest.mark.parametrize("case", ["1", *SHARDED, *SPARSE])
def test_pages_and_rows_are_updated_in_place(found: dict[str, Any], case: str) -> None:
    assert found[case]["aliased_bytes"] == found[case]["donated_bytes"] > 0
    assert found[case]["pool_copies"] == 0
    assert found[case]["weight_copies"] == 0


def test_each_device_holds_its_share_of_the_pages(found: dict[str, Any]) -> None:
    donated = {case: found[case]["donated_bytes"] for case in ("1", "2", "4", "8")}
    pages = 2 * (donated["1"] - donated["2"])
    rows = donated["1"] - pages
    assert pages > rows > 0
    assert donated["4"] == pages // 4 + rows
    assert donated["8"] == pages // 8 + rows


@pytest.mark.parametrize("case", SPARSE)
def test_a_mixture_needs_no_more_sums_than_a_dense_layer(found: dict[str, Any], case: str) -> None:
    """Attention's and the experts'; a shared expert's goes along with theirs."""
    one = f"f32[{TOKENS},{EMBED}]"
    of_experts = f"{one}+{one}" if case.startswith("sharing") else one
    expected = [one] * (LAYERS + 1) + [of_experts] * LAYERS
    assert collectives(found, case, "all-reduce") == sorted(expected)


@pytest.mark.parametrize("case", SPARSE)
def test_of_a_mixture_nothing_else_is_exchanged_either(found: dict[str, Any], case: str) -> None:
    """No weights of experts, no whole logits but for log-probabilities."""
    devices = found[case]["devices"]
    share = -(-ROWS // devices)
    others = [entry for entry in found[case]["collectives"] if entry[0] != "all-reduce"]
    assert others == [
        ["all-gather", f"f32[{share},{VOCAB}]"],
        ["all-gather", f"s32[{share * devices}]"],
        ["all-to-all", exchanged_logits(share, devices)],
    ]


def test_the_count_notices_weights_that_are_split_along_the_wrong_axis(
    found: dict[str, Any],
) -> None:
    sums = [shape for operation, shape in found["spoilt"] if operation == "all-reduce"]
    assert len(sums) > 2 * LAYERS + 1


def collectives(found: dict[str, Any], case: str, operation: str) -> list[str]:
    return [shape for kind, shape in found[case]["collectives"] if kind == operation]


def exchanged_logits(share: int, devices: int) -> str:
    """What a device gets of the logits: of its rows, a part of the vocabulary from each device."""
    return "+".join([f"f32[{share},{VOCAB // devices}]"] * devices)

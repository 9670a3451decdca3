"""The engine's own step compiled for GPUs that aren't there: what must hold of the program."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from fastgen_jax.models.families.parts import all_sparse, mixture_of
from fastgen_jax.models.shapes import SHAPES
from fastgen_jax.plan import Plan, plan
from fastgen_jax.plan.deviceless import CompilationError, compile_step
from fastgen_jax.plan.request import CompileRequest

pytestmark = pytest.mark.aot

# Llama-3.1-8B in small: its head ratio and head size, two layers.
SMALL = replace(
    SHAPES["llama-3.1-8b"],
    vocab_size=4096,
    hidden_size=1024,
    intermediate_size=2048,
    layers=SHAPES["llama-3.1-8b"].layers[:2],
    num_heads=32,
    num_kv_heads=8,
)
MIB = 2**20


def make(gpu: str, tp: int) -> Plan:
    return plan(SMALL, gpu=gpu, tp=tp, context=512, max_num_seqs=64, token_budget=64)


@pytest.fixture(scope="module")
def plans(compiler: Path) -> dict[tuple[str, int], Plan]:
    with ThreadPoolExecutor(2) as pool:  # one compilation keeps little more than a core busy
        return dict(zip(CASES, pool.map(lambda case: make(*case), CASES), strict=True))


CASES = [("h100", 1), ("h100", 8), ("a100", 1)]


@pytest.mark.parametrize("case", CASES, ids=str)
class TestStep:
    """What every compiled step must show."""

    def test_pages_and_rows_are_updated_in_place(self, plans, case) -> None:
        compiled = plans[case].steps[0].compiled
        assert compiled.aliased_bytes == compiled.donated_bytes

    def test_no_weight_and_no_pool_is_copied(self, plans, case) -> None:
        compiled = plans[case].steps[0].compiled
        assert (compiled.weight_copies, compiled.kv_copies) == (0, 0)

    def test_the_whole_step_is_one_graph(self, plans, case) -> None:
        graphs = plans[case].steps[0].compiled.graphs
        assert (graphs.num_graphs, graphs.outside) == (1, ())
        assert graphs.num_inside > 20

    def test_temporary_space_is_bounded(self, plans, case) -> None:
        compiled = plans[case].steps[0].compiled
        assert (
            compiled.temp_bytes <= 1.25 * compiled.needed_temp_bytes + 16 * MIB
        )  # library scratch space

    def test_two_sums_a_layer_and_one_for_the_embedding(self, plans, case) -> None:
        found = {name: count for name, count, _ in plans[case].steps[0].compiled.collectives}
        expected = 2 * SMALL.num_layers + 1 if case[1] > 1 else 0
        assert found.get("all-reduce", 0) == expected

    def test_every_product_of_the_model_is_priced(self, plans, case) -> None:
        costs = plans[case].steps[0].estimate.costs
        names = {name for c in costs for name in c.launch.name.split("+") if c.launch.flops}
        assert {"q", "k", "v", "o", "gate", "up", "down", "head"} <= names
        assert plans[case].steps[0].estimate.flops_over_least == pytest.approx(1, abs=0.02)

    def test_our_kernels_spill_nothing(self, plans, case) -> None:
        for kernel in plans[case].steps[0].compiled.kernels:
            assert kernel.spilled == 0, kernel


@pytest.mark.slow
def test_a_mixture_over_tensor_and_expert_parallel_gpus(compiler: Path) -> None:
    model = all_sparse(replace(SMALL, moe=mixture_of(8, 2, 1024)))
    made = plan(model, gpu="h100", tp=2, ep=4, context=512, max_num_seqs=64, token_budget=64)
    compiled, estimate = made.steps[0].compiled, made.steps[0].estimate
    found = {name: count for name, count, _ in compiled.collectives}
    assert found == {"all-reduce": 2 * model.num_layers + 1, "all-to-all": 1, "all-gather": 1}
    assert (compiled.weight_copies, compiled.kv_copies) == (0, 0)
    assert (compiled.graphs.num_graphs, compiled.graphs.outside) == (1, ())
    # Every expert sees every token: 8 experts for 2 that are chosen, and no more than that.
    of_experts = sum(
        c.launch.flops * c.launch.count for c in estimate.costs if "expert" in c.launch.name
    )
    per_token = 2 * 3 * 8 * 1024 * model.hidden_size * model.num_layers // 8
    assert of_experts == 64 * per_token


def test_a_refused_kernel_is_reported(compiler: Path, tmp_path: Path) -> None:
    request = CompileRequest(
        model=SMALL,
        gpu="a100",
        tensor_parallel_size=1,
        expert_parallel_size=1,
        dtype="bfloat16",
        num_tokens=8,
        num_rows=8,
        max_num_seqs=8,
        max_model_len=64,
        block_size=32,
        num_blocks=8,
        max_logprobs=1,
        max_logit_bias=1,
        max_bad_words=1,
        implementation="mosaic_gpu",
        directory=str(tmp_path),
    )
    with pytest.raises(CompilationError, match=r"compute capability 9\.0"):
        compile_step(request, compiler)

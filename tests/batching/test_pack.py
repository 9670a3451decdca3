"""Plans through the packer: what a device reads is what the scheduler meant."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import event, given, settings

from fastgen_jax.batching import StepPacker, StepShape
from fastgen_jax.batching.inputs import ROW_FLAG_PROMPT_LOGPROBS, ROW_FLAG_SAMPLES
from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.kv.layout import blocks_for
from fastgen_jax.request import FinishReason, Request
from fastgen_jax.scheduling.plan import PlannedRow, PlannedRows, StepPlan
from fastgen_jax.scheduling.scheduler import Scheduler, SchedulerConfig
from fastgen_jax.testing.fake_step import FakeInputs, read_inputs
from tests.strategies import crowded_configs, make_request, prompts, scheduler_configs

SHAPES = [StepShape(4, 4), StepShape(16, 4), StepShape(64, 8)]


def make_packer(config: SchedulerConfig) -> StepPacker:
    rows = min(config.max_step_rows, config.token_budget)
    shapes = [StepShape(rows, rows), StepShape(config.token_budget, rows)]
    return StepPacker(
        shapes,
        max_num_seqs=config.max_num_seqs,
        max_blocks_per_seq=blocks_for(config.max_model_len, config.block_size),
    )


def packed_inputs(packer: StepPacker, plan: StepPlan, max_blocks_per_seq: int) -> FakeInputs:
    shape = packer.shape_for(plan)
    return read_inputs(packer.pack(plan, shape), shape, max_blocks_per_seq)


def assert_says(inputs: FakeInputs, plan: StepPlan) -> None:
    """Every field is what the plan and its requests say now, and padding is zero."""
    inputs.check()
    assert inputs.num_rows == len(plan.rows)
    assert inputs.num_steps == plan.chain_length
    assert inputs.num_single_rows == sum(row.num_tokens == 1 for row in plan.rows)
    first = 0
    for index, row in enumerate(plan.rows):
        request = row.request
        assert inputs.device_row[index] == request.row
        assert inputs.query_start[index] == first
        assert inputs.query_len[index] == row.num_tokens
        assert inputs.kv_len[index] == row.start + row.num_tokens
        assert inputs.flags[index] == expected_flags(row)
        table = inputs.block_tables[index].tolist()
        padding = [0] * (len(table) - len(request.block_ids))
        assert table == request.block_ids + padding, "a stale table"
        first += row.num_tokens


def expected_flags(row: PlannedRow) -> int:
    wants_prompt = row.request.params.prompt_logprobs is not None
    in_prompt = row.start < row.request.num_prompt_tokens - 1
    return ROW_FLAG_SAMPLES * row.samples + ROW_FLAG_PROMPT_LOGPROBS * (wants_prompt and in_prompt)


@given(
    config=st.one_of(scheduler_configs(), crowded_configs()),
    asked=st.lists(
        st.tuples(prompts(10), st.integers(1, 12), st.sampled_from([None, None, 0, 2])),
        min_size=1,
        max_size=8,
    ),
    latency=st.integers(0, 2),
    data=st.data(),
)
@settings(max_examples=150)
def test_every_plan_of_a_busy_scheduler_round_trips(
    config: SchedulerConfig,
    asked: list[tuple[tuple[int, ...], int, int | None]],
    latency: int,
    data: st.DataObject,
) -> None:
    """Preemption, re-admission, row reuse and exchanged blocks included."""
    scheduler, packer = Scheduler(config), make_packer(config)
    max_blocks = blocks_for(config.max_model_len, config.block_size)
    unread: list[StepPlan] = []
    queue = [
        make_request(str(i), prompt, max_tokens, prompt_logprobs=wanted)
        for i, (prompt, max_tokens, wanted) in enumerate(asked)
    ]
    for _ in range(400):
        if queue and data.draw(st.booleans(), label="submit"):
            submit(scheduler, queue.pop())
        plan = scheduler.schedule()
        if plan.rows:
            assert_says(packed_inputs(packer, plan, max_blocks), plan)
        unread.append(plan)
        while len(unread) > (latency if plan.rows else 0):
            read(scheduler, unread.pop(0))
        if not queue and not scheduler.has_unfinished:
            break
    if scheduler.metrics().num_preemptions:
        event("preempted")


def submit(scheduler: Scheduler, request: Request) -> None:
    try:
        scheduler.submit(request)
    except InvalidRequestError:
        return


def read(scheduler: Scheduler, plan: StepPlan) -> None:
    for row in [*plan.rows] * plan.chain_length:
        request = row.request
        if row.samples and not request.is_finished:
            scheduler.add_token(request, request.num_tokens % 2)
            if request.num_output_tokens == request.max_output_tokens:
                scheduler.finish(request, FinishReason.LENGTH)


def plan_of(
    *rows: tuple[Request, int, int, bool],
    admitted: tuple[Request, ...] = (),
    changes: tuple[tuple[Request, int], ...] = (),
) -> StepPlan:
    planned = tuple(PlannedRow(*row) for row in rows)
    return StepPlan(
        step_index=0,
        time=0.0,
        rows=PlannedRows.of(planned),
        chain_length=1,
        num_settled=0,
        admitted=admitted,
        table_changes=changes,
        waits=(),
        preempted=(),
        num_tokens=sum(row.num_tokens for row in planned),
        num_decode_tokens=0,
        num_waiting=0,
        num_free_blocks=0,
    )


def running(request_id: str, row: int, blocks: list[int], prompt: int = 4) -> Request:
    request = make_request(request_id, prompt)
    request.row, request.block_ids = row, blocks
    return request


@pytest.fixture
def packer() -> StepPacker:
    return StepPacker(SHAPES[::-1], max_num_seqs=8, max_blocks_per_seq=4)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([1], SHAPES[0]),
        ([1, 1, 1, 1], SHAPES[0]),
        ([1, 1, 1, 2], SHAPES[1]),
        ([5], SHAPES[1]),
        ([16], SHAPES[1]),
        ([17], SHAPES[2]),
        ([1] * 5, SHAPES[2]),
        ([64], SHAPES[2]),
    ],
)
def test_takes_the_smallest_shape(
    packer: StepPacker, lengths: list[int], expected: StepShape
) -> None:
    rows = [(running(str(i), i, [i + 1]), 0, n, False) for i, n in enumerate(lengths)]
    assert packer.shape_for(plan_of(*rows)) == expected


@pytest.mark.parametrize("lengths", [[65], [1] * 9])
def test_a_plan_beyond_every_shape_is_an_error(packer: StepPacker, lengths: list[int]) -> None:
    rows = [(running(str(i), i % 8, [i + 1]), 0, n, False) for i, n in enumerate(lengths)]
    with pytest.raises(ValueError, match="fits no compiled shape"):
        packer.shape_for(plan_of(*rows))


def test_padding_is_zero_and_the_dtype_int32(packer: StepPacker) -> None:
    request = running("a", 3, [7, 2])
    plan = plan_of((request, 0, 3, True), admitted=(request,), changes=((request, 0),))
    packed = packer.pack(plan, SHAPES[1])
    assert packed.dtype == np.int32
    inputs = read_inputs(packed, SHAPES[1], 4)
    inputs.check()
    assert inputs.block_tables[0].tolist() == [7, 2, 0, 0]
    assert (inputs.num_rows, inputs.num_single_rows) == (1, 0)


def test_every_call_returns_a_new_array(packer: StepPacker) -> None:
    request = running("a", 0, [1])
    first = packer.pack(plan_of((request, 0, 4, True), changes=((request, 0),)), SHAPES[0])
    before = first.copy()
    request.block_ids.append(2)
    second = packer.pack(plan_of((request, 4, 1, True), changes=((request, 1),)), SHAPES[0])
    assert not np.shares_memory(first, second)
    assert (first == before).all(), "a step in flight saw the next one's inputs"


def tables(packer: StepPacker, plan: StepPlan) -> list[list[int]]:
    return packed_inputs(packer, plan, 4).block_tables[: len(plan.rows)].tolist()


def test_a_table_stays_till_it_changes(packer: StepPacker) -> None:
    request = running("a", 0, [1, 2])
    tables(packer, plan_of((request, 0, 4, True), changes=((request, 0),)))
    assert tables(packer, plan_of((request, 4, 1, True))) == [[1, 2, 0, 0]]


def test_blocks_before_a_changes_position_stay(packer: StepPacker) -> None:
    request = running("a", 0, [1, 2, 3], prompt=12)
    tables(packer, plan_of((request, 0, 4, False), changes=((request, 0),)))
    request.block_ids = [9, 6, 7]
    plan = plan_of((request, 8, 3, False), changes=((request, 1),))
    assert tables(packer, plan) == [[1, 6, 7, 0]]


def test_a_row_taken_over_by_a_request_with_fewer_blocks(packer: StepPacker) -> None:
    old, new = running("a", 0, [1, 2, 3]), running("b", 0, [4])
    tables(packer, plan_of((old, 0, 4, True), changes=((old, 0),)))
    assert tables(packer, plan_of((new, 0, 4, True), changes=((new, 0),))) == [[4, 0, 0, 0]]
    new.block_ids.append(9)
    assert tables(packer, plan_of((new, 4, 1, True), changes=((new, 1),))) == [[4, 9, 0, 0]]


def test_a_row_taken_over_no_longer_reports_its_prompt(packer: StepPacker) -> None:
    old, new = make_request("a", 4, prompt_logprobs=1), make_request("b", 4)
    for request in (old, new):
        request.row, request.block_ids = 0, [1]
        plan = plan_of((request, 0, 3, False), admitted=(request,), changes=((request, 0),))
        inputs = packed_inputs(packer, plan, 4)
        assert inputs.wants_prompt_logprobs(0) == (request is old)

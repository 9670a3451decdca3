"""What the scheduler does, story by story."""

from __future__ import annotations

from typing import Any

import pytest

from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.request import FinishReason, RequestState
from fastgen_jax.scheduling.plan import Reason, StepPlan
from fastgen_jax.scheduling.scheduler import SchedulerConfig
from tests.scheduling.device import FakeDevice, expected_output
from tests.strategies import make_request


def make_device(policy: str = "fcfs", **sizes: Any) -> FakeDevice:
    """Plenty of everything but what the test names."""
    plenty: dict[str, Any] = {
        "token_budget": 64,
        "max_num_seqs": 8,
        "max_step_rows": 8,
        "max_model_len": 256,
        "block_size": 4,
        "num_blocks": 101,
    }
    return FakeDevice(SchedulerConfig(**(plenty | sizes)), policy)


def shares(plan: StepPlan) -> dict[str, int]:
    return {row.request.request_id: row.num_tokens for row in plan.rows}


def reasons(plan: StepPlan) -> dict[str, Reason]:
    return {decision.request_id: decision.reason for decision in plan.decisions}


def step_till_preemption(device: FakeDevice) -> StepPlan:
    """The first plan that preempts, with one step in flight before each."""
    for _ in range(100):
        plan = device.step()
        if plan.preempted:
            return plan
        if len(device.in_flight) > 1:
            device.read()
    raise AssertionError("nobody was preempted")


def test_fastgen_trace() -> None:
    """The original's worked example: budget 16, prompts 40/10/5, six new tokens each."""
    device = make_device(token_budget=16)
    for request_id, prompt in (("a", 40), ("b", 10), ("c", 5)):
        device.submit(make_request(request_id, prompt, 6))
    plans = device.drain()
    assert [shares(plan) for plan in plans[:5]] == [
        {"a": 16},
        {"a": 16},
        {"a": 8, "b": 8},
        {"a": 1, "b": 2, "c": 5},
        {"a": 1, "b": 1, "c": 1},
    ]
    assert reasons(plans[0]) == {"a": Reason.CHUNK, "b": Reason.NO_BUDGET}
    assert reasons(plans[3]) == {
        "a": Reason.DECODE,
        "b": Reason.LAST_CHUNK,
        "c": Reason.LAST_CHUNK,
    }
    assert [plan.num_tokens for plan in plans if plan.rows] == [16, 16, 16, 8, 3, 3, 3, 3, 2]
    assert all(len(request.output_token_ids) == 6 for request in device.requests.values())


@pytest.mark.parametrize(("prompt", "is_taken"), [(30, True), (31, True), (32, False)])
def test_prompt_against_the_pool(prompt: int, is_taken: bool) -> None:
    """Eight usable blocks of four hold 32 tokens; the prompt and one more must fit."""
    device = make_device(num_blocks=9)
    request = make_request("a", prompt, 50)
    assert device.submit(request) == is_taken
    if is_taken:
        device.drain()
        assert request.finish_reason is FinishReason.LENGTH
        assert len(request.output_token_ids) == 32 - prompt + 1
        assert device.scheduler.metrics().num_preemptions == 0


def test_refusals_name_both_numbers_and_the_remedy() -> None:
    scheduler = make_device(num_blocks=9, max_model_len=64).scheduler
    with pytest.raises(
        InvalidRequestError, match=r"9 blocks of 4 tokens, the pool has 8.*num_kv_b"
    ):
        scheduler.submit(make_request("a", 32))
    with pytest.raises(InvalidRequestError, match=r"65 positions, max_model_len is 64; shorten"):
        scheduler.submit(make_request("a", 64))
    with pytest.raises(InvalidRequestError, match="is empty"):
        scheduler.submit(make_request("a", ()))
    scheduler.submit(make_request("a", 4))
    with pytest.raises(InvalidRequestError, match="still live"):
        scheduler.submit(make_request("a", 4))
    assert scheduler.num_waiting == 1


def test_an_id_is_free_again_after_the_end() -> None:
    device = make_device()
    device.submit(make_request("a", 4))
    device.drain()
    assert device.submit(make_request("a", 4))


def test_output_is_bounded_by_the_models_length() -> None:
    device = make_device(max_model_len=10)
    request = make_request("a", 6, 50)
    device.submit(request)
    device.drain()
    assert len(request.token_ids) == 10


def test_two_long_prompts_each_half_the_pool() -> None:
    """The original's deadlock: neither may take blocks the other needs to go on."""
    device = make_device(num_blocks=17, token_budget=8)
    for request_id in "ab":
        device.submit(make_request(request_id, 32, 20))
    first = device.step()
    assert reasons(first) == {"a": Reason.CHUNK, "b": Reason.NO_BUDGET}
    device.drain()
    for request in device.requests.values():
        assert request.output_token_ids == expected_output(request)
        assert request.num_preemptions == 0


def test_preemption_keeps_every_token() -> None:
    """The original lost the text before an eviction: 12, 10 and 6 of 12 tokens."""
    device = make_device(num_blocks=7, enable_prefix_caching=False)
    for request_id in "abc":
        device.submit(make_request(request_id, 7, 12))
    device.drain()
    assert device.scheduler.metrics().num_preemptions > 0
    for request in device.requests.values():
        assert request.output_token_ids == expected_output(request)
        assert len(request.output_token_ids) == 12


def test_the_newest_gives_way_and_waits_a_plan() -> None:
    device = make_device(num_blocks=7, enable_prefix_caching=False)
    for request_id in "ab":
        device.submit(make_request(request_id, 8, 12))
    plan = step_till_preemption(device)
    victim, winner = plan.preempted[0]
    assert (victim.request_id, winner) == ("b", "a")
    assert (victim.state, victim.row, victim.block_ids) == (RequestState.WAITING, -1, [])
    assert victim.num_computed_tokens == 0
    assert victim.num_tokens == len(victim.token_ids) + 1  # its token in flight still counts
    assert reasons(plan) == {"a": Reason.DECODE, "b": Reason.PREEMPTED}
    unread = device.step()
    assert reasons(unread)["b"] is Reason.IN_FLIGHT
    device.drain()


def test_nobody_is_admitted_past_a_fresh_victim() -> None:
    device = make_device(num_blocks=7, enable_prefix_caching=False, max_num_seqs=2)
    for request_id in "ab":
        device.submit(make_request(request_id, 8, 12))
    device.submit(make_request("c", 1, 1))
    plan = step_till_preemption(device)
    assert reasons(plan)["c"] is Reason.NO_BLOCKS
    assert not plan.admitted
    device.drain()


def test_a_drained_requests_blocks_are_taken_before_anyone_is_preempted() -> None:
    """All of b is in flight, so no later step reads its blocks."""
    device = make_device(num_blocks=5, enable_prefix_caching=False)
    device.submit(make_request("a", 3, 10))
    device.submit(make_request("b", 4, 2))
    for _ in range(6):
        device.step()
    plan = device.step()
    assert reasons(plan) == {"a": Reason.DECODE, "b": Reason.IN_FLIGHT}
    assert device.requests["b"].block_ids == []
    device.drain()
    assert device.scheduler.metrics().num_preemptions == 0


def test_blocks_written_in_a_plan_are_not_handed_out_in_it() -> None:
    """Nothing of a is left to plan, but it writes in this very step: b must give way itself."""
    device = make_device(num_blocks=5, enable_prefix_caching=False)
    device.submit(make_request("a", 3, 6))
    device.submit(make_request("b", 4, 8))
    for _ in range(5):
        device.step()
    plan = device.step()
    assert [(victim.request_id, winner) for victim, winner in plan.preempted] == [("b", "b")]
    assert len(device.requests["a"].block_ids) == 2
    device.drain()


def test_a_victim_whose_blocks_are_all_shared_is_not_enough() -> None:
    device = make_device(enable_prefix_caching=False)
    for request_id, prompt in (("a", 8), ("b", 5), ("c", 5)):
        device.submit(make_request(request_id, prompt, 9))
    device.step()
    pool = device.scheduler.pool
    pool.share(device.requests["c"].block_ids)
    pool.allocate(pool.num_free)
    plan = device.scheduler.schedule()
    assert [(victim.request_id, winner) for victim, winner in plan.preempted] == [
        ("c", "a"),
        ("b", "a"),
    ]
    assert shares(plan) == {"a": 1}


def test_decodes_come_before_prompts() -> None:
    device = make_device(token_budget=4)
    device.submit(make_request("a", 4, 8))
    device.step()
    device.submit(make_request("b", 9, 8))
    assert [list(shares(device.step()).items()) for _ in range(3)] == [[("a", 1), ("b", 3)]] * 3


def test_small_requests_pass_one_that_waits_for_blocks_but_not_for_ever() -> None:
    """No head-of-line blocking, and no starvation: two may pass, then nobody."""
    device = make_device(num_blocks=11, max_admission_skips=2, enable_prefix_caching=False)
    device.submit(make_request("run", 12, 12))
    device.step()
    device.submit(make_request("big", 28, 4))
    for i in range(6):
        device.submit(make_request(f"small{i}", 2, 1))
    plan = device.step()
    assert reasons(plan) == {
        "run": Reason.DECODE,
        "big": Reason.NO_BLOCKS,
        "small0": Reason.LAST_CHUNK,
        "small1": Reason.LAST_CHUNK,
        "small2": Reason.POLICY_ORDER,
    }
    admitted = [r.request_id for plan in device.drain() for r in plan.admitted]
    assert admitted[0] == "big"
    assert sorted(admitted[1:]) == ["small2", "small3", "small4", "small5"]


def test_only_some_of_those_without_blocks_are_looked_at() -> None:
    device = make_device(num_blocks=11, max_admission_lookahead=3)
    device.submit(make_request("run", 12, 12))
    device.step()
    for i in range(9):
        device.submit(make_request(f"big{i}", 28, 4))
    plan = device.step()
    assert [reason for _, reason in plan.waits] == [Reason.NO_BLOCKS] * 3
    device.drain()


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "reason"),
    [
        (20, 9, Reason.LAST_CHUNK),
        (21, 9, Reason.NO_BLOCKS),
        (24, 1, Reason.LAST_CHUNK),  # won't grow, so it needs no reserve for itself
        (24, 2, Reason.NO_BLOCKS),
        (25, 1, Reason.NO_BLOCKS),
    ],
)
def test_the_reserve_exactly(prompt: int, max_tokens: int, reason: Reason) -> None:
    """Nine blocks, two held by a, which will need a third: seven are free, one is a's."""
    device = make_device(num_blocks=10, enable_prefix_caching=False)
    device.submit(make_request("a", 4, 9))
    device.step()
    device.submit(make_request("b", prompt, max_tokens))
    assert reasons(device.step())["b"] is reason


def test_rows_run_out() -> None:
    device = make_device(max_num_seqs=2)
    for request_id in "abcd":
        device.submit(make_request(request_id, 2, 3))
    plan = device.step()
    assert reasons(plan)["c"] is Reason.NO_ROW
    assert "d" not in reasons(plan)
    assert [r.row for r in plan.admitted] == [0, 1]
    device.scheduler.abort("a")
    assert [r.row for r in device.step().admitted] == [0]


def test_step_rows_run_out() -> None:
    device = make_device(max_step_rows=2)
    for request_id in "abc":
        device.submit(make_request(request_id, 2, 3))
    assert reasons(device.step())["c"] is Reason.NO_ROW
    device.drain()


def test_priority_runs_the_urgent_first_and_preempts_the_others() -> None:
    device = make_device("priority", num_blocks=9, enable_prefix_caching=False)
    device.submit(make_request("low", 8, 12, priority=5))
    device.step()
    device.submit(make_request("high", 8, 12, priority=-1))
    plan = step_till_preemption(device)
    assert [victim.request_id for victim, _ in plan.preempted] == ["low"]
    assert reasons(plan)["high"] is Reason.DECODE
    device.drain()


def test_priority_orders_the_queue() -> None:
    device = make_device("priority", max_num_seqs=1)
    for i, priority in enumerate((2, 1, 0, 1)):
        device.submit(make_request(str(i), 2, 1, priority=priority))
    admitted = [r.request_id for plan in device.drain() for r in plan.admitted]
    assert admitted == ["2", "1", "3", "0"]


def test_results_of_an_aborted_request_are_refused() -> None:
    device = make_device()
    request = make_request("a", 4)
    device.submit(request)
    device.step()
    assert device.scheduler.abort("a") is request
    assert request.is_finished
    with pytest.raises(ValueError, match="awaits no token"):
        device.scheduler.add_token(request, 1)
    with pytest.raises(ValueError, match="isn't live"):
        device.scheduler.finish(request, FinishReason.STOP)
    assert device.scheduler.abort("unknown") is None


def test_an_idle_schedule_is_empty() -> None:
    plan = make_device().step()
    assert plan.is_empty
    assert plan.decisions == ()


def test_chunks_are_rounded_only_where_the_freed_budget_is_used() -> None:
    for other, expected in ((6, {"a": 24, "b": 6}), (7, {"a": 30})):
        device = make_device(token_budget=30, chunk_multiple=8)
        device.submit(make_request("a", 40, 2))
        device.submit(make_request("b", other, 2))
        assert shares(device.step()) == expected
        device.drain()

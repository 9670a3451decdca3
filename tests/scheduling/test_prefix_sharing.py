"""Who shares whose blocks, and when."""

from __future__ import annotations

from typing import Any

import pytest

from fastgen_jax.scheduling.scheduler import SchedulerConfig
from tests.scheduling.device import FakeDevice
from tests.strategies import make_request

PROMPT = tuple(range(100, 112))  # three blocks of four


def make_device(**sizes: Any) -> FakeDevice:
    plenty: dict[str, Any] = {
        "token_budget": 64,
        "max_num_seqs": 8,
        "max_step_rows": 8,
        "max_model_len": 256,
        "block_size": 4,
        "num_blocks": 51,
    }
    return FakeDevice(SchedulerConfig(**(plenty | sizes)))


def starts(device: FakeDevice) -> dict[str, int]:
    return {row.request.request_id: row.start for row in device.step().rows}


def test_a_prompt_found_in_full_computes_its_last_block_again() -> None:
    """The last token's logits are needed, so its block is the request's own."""
    device = make_device()
    device.submit(make_request("a", PROMPT, 1))
    device.drain()
    device.submit(make_request("b", PROMPT, 1))
    device.submit(make_request("c", (*PROMPT, 1), 1))
    assert starts(device) == {"b": 8, "c": 12}
    assert device.requests["b"].num_cached_tokens == 8
    metrics = device.scheduler.metrics()
    assert (metrics.num_queried_tokens, metrics.num_hit_tokens) == (12 + 12 + 13, 8 + 12)
    assert metrics.prefix_hit_rate == 20 / 37


def test_requests_of_one_plan_share() -> None:
    device = make_device()
    for request_id in "abc":
        device.submit(make_request(request_id, (*PROMPT, ord(request_id)), 4))
    assert starts(device) == {"a": 0, "b": 12, "c": 12}
    tables = [request.block_ids for request in device.requests.values()]
    assert tables[0][:3] == tables[1][:3] == tables[2][:3]
    assert len({table[3] for table in tables}) == 3
    device.drain()


def test_only_the_part_already_planned_is_shared() -> None:
    device = make_device(token_budget=14)
    device.submit(make_request("a", PROMPT[:9], 4))
    device.submit(make_request("b", PROMPT, 4))
    assert starts(device) == {"a": 0, "b": 8}


@pytest.mark.parametrize("budget", [8, 9, 11])  # at a block boundary, and inside a block
def test_a_running_prompt_takes_blocks_that_became_findable(budget: int) -> None:
    """b starts alone; another one overtakes it, and b goes on behind the other's blocks."""
    prompt = tuple(range(100, 132))
    device = make_device(token_budget=budget, max_step_rows=1)
    device.submit(make_request("b", prompt, 2))
    assert starts(device) == {"b": 0}
    pool, b = device.scheduler.pool, device.requests["b"]
    own = list(b.block_ids)
    a_blocks = pool.allocate(3)  # as another request would have: blocks 2 to 4 of the prompt
    for block, digest in zip(a_blocks, b.block_hashes[2:5], strict=True):
        pool.commit(digest, block)
        for slot in range(4):
            position = (a_blocks.index(block) + 2) * 4 + slot
            device.slots[block, slot] = (None, prompt[: position + 1])
    plan = device.scheduler.schedule()
    assert [(row.start, row.num_tokens) for row in plan.rows] == [(20, budget)]
    assert b.block_ids == [*own[:2], *a_blocks, *own[5:]]
    assert all(pool.num_holders(block) == 2 for block in a_blocks)
    assert all(pool.num_holders(block) == 0 for block in own[2:5])
    assert b.num_cached_tokens == 20 - budget
    device._write(plan)
    device._read_back(plan)


def test_two_prompts_in_step_share_what_either_computes() -> None:
    """Both run in slices; whoever is behind jumps over what the other has done."""
    prompt = tuple(range(100, 140))
    device = make_device(token_budget=12)
    device.submit(make_request("a", prompt, 2))
    device.submit(make_request("b", (*prompt[:8], 7, 7, 7, 7), 2))
    device.drain()
    assert device.requests["b"].num_cached_tokens == 8


def test_output_blocks_are_found_once_their_tokens_are_read() -> None:
    """The next turn of a chat finds the answer as well as the prompt."""
    device = make_device()
    first = make_request("a", PROMPT, 9)
    device.submit(first)
    device.drain()
    device.submit(make_request("b", (*first.token_ids, 5), 2))
    assert starts(device) == {"b": 20}


def test_an_output_block_is_found_once_a_decode_filled_it() -> None:
    """Read before it is computed, as in a synchronous loop: the next decode makes it findable."""
    device = make_device()
    first = make_request("a", PROMPT[:7], 9)
    device.submit(first)
    device.step()
    device.read()
    device.step()
    device.submit(make_request("b", (*first.token_ids, 5), 2))
    assert starts(device) == {"a": 8, "b": 8}


def test_salts_separate() -> None:
    device = make_device()
    for request_id, salt in (("a", None), ("b", "x"), ("c", "y"), ("d", "x"), ("e", "")):
        device.submit(make_request(request_id, (*PROMPT, 1), 1, salt=salt))
    assert starts(device) == {"a": 0, "b": 0, "c": 0, "d": 12, "e": 0}


def test_prompt_logprobs_compute_everything_but_are_shared() -> None:
    device = make_device()
    device.submit(make_request("a", (*PROMPT, 1), 1))
    device.submit(make_request("b", (*PROMPT, 2), 1, prompt_logprobs=1))
    assert starts(device) == {"a": 0, "b": 0}
    device.drain()


def test_a_failed_requests_blocks_are_never_found_again() -> None:
    device = make_device()
    failed = make_request("a", (*PROMPT, 1), 4)
    device.submit(failed)
    device.step()
    device.scheduler.fail(failed, "logits are not finite")
    device.submit(make_request("b", (*PROMPT, 2), 1))
    assert starts(device) == {"b": 0}
    device.drain()


def test_shared_prefixes_outlive_tails() -> None:
    """Eviction takes tails first: the common front of old requests is still there."""
    device = make_device(num_blocks=8)
    device.submit(make_request("a", (*PROMPT, 1, 1, 1, 1), 1))
    device.drain()
    device.submit(make_request("other", 15, 1))
    device.drain()
    device.submit(make_request("b", (*PROMPT, 2), 1))
    assert starts(device) == {"b": 12}


def test_a_preempted_request_finds_its_own_blocks() -> None:
    device = make_device(num_blocks=8)
    for request_id in "ab":
        device.submit(make_request(request_id, 8, 14))
    plans = device.drain()
    resumed = [r for plan in plans for r in plan.rows if r.request.num_preemptions and r.start]
    assert device.scheduler.metrics().num_preemptions
    assert resumed

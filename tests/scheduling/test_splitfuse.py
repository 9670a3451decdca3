"""The budget filler on plain numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgen_jax.scheduling.scheduler import SchedulerConfig
from fastgen_jax.scheduling.splitfuse import choose_budget, next_chunk, split_budget
from tests.scheduling.device import FakeDevice
from tests.strategies import make_request


@pytest.mark.parametrize(
    ("budget", "decodes", "prompts", "multiple", "chunks"),
    [
        (16, 0, (40, 10, 5), 1, (16, 0, 0)),
        (16, 1, (2, 5), 1, (2, 5)),
        (16, 20, (4,), 1, (0,)),
        (100, 26, (200, 10), 32, (64, 10)),  # the freed 10 are used by the next prompt
        (100, 26, (200, 11), 32, (74, 0)),  # nobody fits: they go back to the cut chunk
        (100, 26, (200, 4, 4, 4), 32, (66, 4, 4, 0)),  # two fit, the rest goes back
        (100, 90, (200, 4), 32, (10, 0)),  # less than a multiple is left: taken as it is
        (100, 0, (200,), 32, (100,)),  # alone, it takes all
        (100, 0, (70, 30), 32, (70, 30)),  # last chunks are never rounded
        (96, 0, (200, 3), 32, (96, 0)),
    ],
)
def test_split_budget(
    budget: int, decodes: int, prompts: tuple[int, ...], multiple: int, chunks: tuple[int, ...]
) -> None:
    assert split_budget(budget, decodes, prompts, chunk_multiple=multiple) == (
        min(decodes, budget),
        chunks,
    )


def test_a_prompt_after_a_cut_runs_whole_or_waits() -> None:
    assert next_chunk(10, 10, 32, after_cut=True) == 10
    assert next_chunk(11, 10, 32, after_cut=True) == 0


@given(
    st.integers(1, 64),
    st.integers(0, 40),
    st.lists(st.integers(1, 50), max_size=8),
    st.integers(1, 16),
)
def test_no_budget_is_lost(budget: int, decodes: int, prompts: list[int], multiple: int) -> None:
    granted, chunks = split_budget(budget, decodes, prompts, chunk_multiple=multiple)
    assert granted + sum(chunks) == min(budget, decodes + sum(prompts))
    assert all(0 <= chunk <= need for chunk, need in zip(chunks, prompts, strict=True))
    assert sum(0 < c < need for c, need in zip(chunks, prompts, strict=True)) <= 1


@given(st.integers(1, 40), st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 16))
def test_the_scheduler_splits_like_the_plain_function(
    budget: int, prompts: list[int], multiple: int
) -> None:
    """With rows and blocks in plenty, each step is split_budget of what is left."""
    config = SchedulerConfig(
        token_budget=budget,
        max_num_seqs=8,
        max_step_rows=8,
        max_model_len=200,
        block_size=4,
        num_blocks=200,
        chunk_multiple=multiple,
    )
    device = FakeDevice(config)
    requests = [make_request(str(i), n, 3) for i, n in enumerate(prompts)]
    for request in requests:
        device.submit(request)
    while device.scheduler.has_unfinished:
        live = [r for r in requests if not r.is_finished and not r.is_fully_planned]
        left = {r.request_id: r.num_tokens - r.num_computed_tokens for r in live}
        is_single = {r.request_id: r.row >= 0 and left[r.request_id] == 1 for r in live}
        waiting = [r.request_id for r in live if not is_single[r.request_id]]
        singles, chunks = split_budget(
            budget,
            sum(is_single.values()),
            [left[request_id] for request_id in waiting],
            chunk_multiple=multiple,
        )
        plan = device.step()
        ran = {row.request.request_id: row.num_tokens for row in plan.rows}
        assert sum(is_single[request_id] for request_id in ran) == singles
        assert [ran.get(request_id, 0) for request_id in waiting] == list(chunks)
        while len(device.in_flight) > 1 or (device.in_flight and not plan.rows):
            device.read()


@pytest.mark.parametrize(
    ("demand", "num_decodes", "expected"),
    [
        (1, 1, 1),
        (5, 0, 32),  # five steps of 1 would read the weights five times
        (37, 0, 32),  # and then the rest
        (300, 0, 256),
        (7000, 10, 256),
        (32, 32, 32),
        (33, 32, 256),  # 32 would leave no room beside the decodes
        (47, 10, 32),
        (100, 16, 32),
        (100, 17, 256),
    ],
)
def test_the_step_size_follows_the_demand(demand: int, num_decodes: int, expected: int) -> None:
    chosen = choose_budget((1, 32, 256), demand=demand, num_decodes=num_decodes, overhead=8)
    assert chosen == expected


@given(
    sizes=st.lists(st.integers(1, 600), min_size=1, max_size=5, unique=True).map(sorted),
    demand=st.integers(0, 1000),
    share=st.floats(0, 1),
    overhead=st.integers(0, 300),
)
def test_a_chosen_step_size_leaves_room_for_prompts(
    sizes: list[int], demand: int, share: float, overhead: int
) -> None:
    num_decodes = int(demand * share)
    chosen = choose_budget(sizes, demand=demand, num_decodes=num_decodes, overhead=overhead)
    assert chosen in sizes
    if chosen < demand and chosen != sizes[-1]:
        assert chosen >= 2 * num_decodes

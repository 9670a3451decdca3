"""Which rows of a step need more than their token appended."""

from __future__ import annotations

import numpy as np
import pytest

from fastgen_jax.completion import Completion
from fastgen_jax.live_completions import LiveCompletions
from fastgen_jax.request import Request
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.scheduling.plan import PlannedRow, PlannedRows, StepPlan
from fastgen_jax.testing import ByteTokenizer

VOCAB = 12


def make_completion(row: int, params: SamplingParams) -> Completion:
    request = Request(
        request_id=str(row),
        prompt_token_ids=(1, 2, 3),
        params=params,
        max_output_tokens=params.max_tokens or 5,
    )
    request.row = row
    return Completion(
        request, index=0, tokenizer=ByteTokenizer(), eos_token_ids=frozenset({9, 257})
    )


def make_live() -> LiveCompletions:
    return LiveCompletions(max_num_seqs=4, vocab_size=VOCAB, block_size=4)


def plan_of(*rows: PlannedRow, num_settled: int, chain_length: int = 1) -> StepPlan:
    return StepPlan(
        step_index=0,
        time=0.0,
        rows=PlannedRows.of(rows),
        chain_length=chain_length,
        num_settled=num_settled,
        admitted=(),
        table_changes=(),
        waits=(),
        preempted=(),
        num_tokens=len(rows),
        num_decode_tokens=len(rows),
        num_waiting=0,
        num_free_blocks=0,
    )


def watched(
    live: LiveCompletions, params: SamplingParams, start: int, num_settled: int = 1
) -> bool:
    completion = make_completion(2, params)
    live.add(completion)
    live.admit(completion)
    row = PlannedRow(completion.request, start, 1, True)
    return live.watched(plan_of(row, num_settled=num_settled)).tolist() == [[True]]


@pytest.mark.parametrize(
    ("params", "start", "expected"),
    [
        (SamplingParams(max_tokens=9), 4, False),
        (SamplingParams(max_tokens=9), 6, True),  # the drawn token is the 8th: a block is full
        (SamplingParams(max_tokens=3), 3, False),
        (SamplingParams(max_tokens=3), 4, True),  # the last
        (SamplingParams(max_tokens=9, logprobs=0), 4, True),
        (SamplingParams(max_tokens=9, stop="x"), 4, True),
    ],
)
def test_a_decode_is_watched_where_its_token_does_more(
    params: SamplingParams, start: int, expected: bool
) -> None:
    assert watched(make_live(), params, start) == expected


def test_each_step_of_a_chain_has_its_own_rows() -> None:
    live = make_live()
    completions = [make_completion(row, SamplingParams(max_tokens=9)) for row in range(2)]
    for completion in completions:
        live.add(completion)
        live.admit(completion)
    rows = [
        PlannedRow(c.request, start, 1, True) for c, start in zip(completions, (4, 8), strict=True)
    ]
    plan = plan_of(*rows, num_settled=2, chain_length=4)
    assert live.watched(plan).tolist() == [
        [False, False],
        [False, False],
        [True, True],  # both fill a block, and the second
        [False, True],  # has as many tokens as it may
    ]


def test_a_prompt_is_always_watched() -> None:
    assert watched(make_live(), SamplingParams(max_tokens=9), 4, num_settled=0)


def test_a_row_taken_over_is_watched_for_its_new_request_only() -> None:
    live = make_live()
    assert watched(live, SamplingParams(max_tokens=2, logprobs=1), 3)
    assert not watched(live, SamplingParams(max_tokens=9), 4)


def test_tokens_that_may_stop_somebody() -> None:
    live = make_live()
    drawn = np.array([5, 9, 0, -1], np.int32)
    assert live.may_stop(drawn).tolist() == [False, False, False, True]
    both = [make_completion(row, SamplingParams(stop_token_ids=[5])) for row in range(2)]
    for completion in both:
        live.add(completion)
    assert live.may_stop(drawn).tolist() == [True, True, False, True]
    live.remove(both[0].request)
    assert live.may_stop(drawn).tolist() == [True, True, False, True]
    live.remove(both[1].request)
    assert live.may_stop(drawn).tolist() == [False, False, False, True]


def test_those_that_ended_are_none() -> None:
    live = make_live()
    first, second = (make_completion(row, SamplingParams()) for row in range(2))
    live.add(first)
    live.add(second)
    assert live.remove(first.request) is first
    assert list(live.of([first.request, second.request])) == [None, second]
    assert list(live) == [second.request]
    assert first.request not in live

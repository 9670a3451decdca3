from __future__ import annotations

import numpy as np
import pytest

from benchmarks.recorded_step import RecordedStep, record_steps, token_places, unpack
from benchmarks.step_profile import choose_steps
from benchmarks.workload import Mix, draw_workload
from fastgen_jax.batching import StepShape
from fastgen_jax.sampling import RowLimits
from fastgen_jax.scheduling.config import SchedulerConfig

ROWS, FULL = StepShape(4, 4), StepShape(16, 4)
WIDTH = 8


@pytest.fixture(scope="module")
def steps() -> list[RecordedStep]:
    mix = Mix(num_requests=4, prompt_mean=20, output_mean=9, relative_deviation=0.0, vocab_size=300)
    return record_steps(
        draw_workload(mix),
        shapes=[ROWS, FULL],
        limits=RowLimits(max_num_seqs=4, max_model_len=32, vocab_size=300),
        scheduler=SchedulerConfig(
            token_budget=16,
            max_num_seqs=4,
            max_step_rows=4,
            max_model_len=32,
            block_size=4,
            num_blocks=40,
            enable_prefix_caching=False,
        ),
        max_blocks_per_seq=WIDTH,
    )


def test_every_token_is_computed_once(steps: list[RecordedStep]):
    # The last output token of a request is drawn, never computed.
    assert sum(step.num_tokens for step in steps) == 4 * (20 + 9 - 1)
    assert sum(step.num_decode_tokens for step in steps) == 4 * (9 - 1)
    assert all(step.host_seconds > 0.0 for step in steps)


def test_chosen_steps_fill_the_budget_and_the_rows(steps: list[RecordedStep]):
    chosen = choose_steps(steps)
    assert chosen["full budget"].num_tokens == FULL.num_tokens
    assert chosen["decode"].num_decode_tokens == ROWS.num_rows
    assert chosen["decode"].shape == ROWS
    assert sorted(chosen["decode"].rows) == [0, 1, 2, 3]


def test_token_places_follow_the_block_tables(steps: list[RecordedStep]):
    fields = unpack(choose_steps(steps)["decode"], WIDTH)
    positions, pages, slots = token_places(fields, ROWS.num_tokens, 4)
    np.testing.assert_array_equal(positions, fields["kv_len"] - 1)
    for row, position in enumerate(positions):
        assert pages[row] == fields["block_tables"][row, position // 4] > 0
        assert slots[row] == position % 4

"""The result vector as named arrays."""

from __future__ import annotations

import numpy as np
import pytest

from fastgen_jax.batching import ResultLayout, StepResults, StepShape
from fastgen_jax.batching.inputs import FLOAT_RESULTS

LAYOUT = ResultLayout(StepShape(num_tokens=3, num_rows=2), max_logprobs=4)
SHAPES = {
    "token_ids": (2,),
    "logprob": (5,),
    "rank": (5,),
    "top_ids": (5, 4),
    "top_logprobs": (5, 4),
}


def make_results() -> tuple[StepResults, dict[str, np.ndarray]]:
    """Results as a device concatenates them, and the fields they were made of."""
    fields: dict[str, np.ndarray] = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        dtype = np.float32 if name in FLOAT_RESULTS else np.int32
        fields[name] = (np.arange(np.prod(shape)) - 100.5 * number).astype(dtype).reshape(shape)
    packed = np.concatenate([field.reshape(-1).view(np.int32) for field in fields.values()])
    return StepResults(packed, LAYOUT), fields


def test_every_field_comes_back_in_its_shape_and_dtype() -> None:
    results, fields = make_results()
    for name, expected in fields.items():
        found = results.field(name)
        assert found.dtype == expected.dtype
        assert found.shape == SHAPES[name]
        assert (found == expected).all()


def test_tokens_are_plain_ints() -> None:
    results, fields = make_results()
    assert results.token_ids == fields["token_ids"].tolist()
    assert all(type(token_id) is int for token_id in results.token_ids)


def test_the_drawn_tokens_come_before_the_prompts() -> None:
    results, fields = make_results()
    assert results.num_rows == 2
    for name in ("logprob", "rank", "top_ids", "top_logprobs"):
        assert results.drawn(name) == fields[name][:2].tolist()


def test_fields_cannot_be_written() -> None:
    results, _ = make_results()
    with pytest.raises(ValueError, match="read-only"):
        results.field("rank")[0] = 1


@pytest.mark.parametrize("size", [LAYOUT.size - 1, LAYOUT.size + 1])
def test_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        StepResults(np.zeros(size, np.int32), LAYOUT)


def test_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        StepResults(np.zeros(LAYOUT.size, np.int64), LAYOUT)


def test_the_steps_of_a_chain_stand_behind_each_other() -> None:
    layout = ResultLayout(LAYOUT.shape, LAYOUT.max_logprobs, max_steps=3)
    assert layout.size == 3 * LAYOUT.size
    packed = np.arange(layout.size, dtype=np.int32)
    results = StepResults(packed, layout)
    assert results.token_ids == results.step(0).token_ids == [0, 1]
    assert results.step(2).token_ids == [2 * LAYOUT.size, 2 * LAYOUT.size + 1]
    alone = StepResults(packed[LAYOUT.size : 2 * LAYOUT.size], LAYOUT)
    for name in SHAPES:
        assert np.array_equal(
            results.step(1).field(name).view(np.int32), alone.field(name).view(np.int32)
        )
    with pytest.raises(ValueError, match="expected"):
        StepResults(packed[: LAYOUT.size], layout)

"""The fake device notices what a real one would get wrong without a sign."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fastgen_jax.batching import InputLayout, StepShape
from fastgen_jax.errors import EngineClosedError
from fastgen_jax.sampling.packing import pack_row
from fastgen_jax.sampling.row_limits import RowLimits
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.testing import FakeExecutor, fake_engine, hashed_tokens

SHAPE = StepShape(8, 4)
LAYOUT = InputLayout(SHAPE, max_blocks_per_seq=4)
LIMITS = RowLimits(max_num_seqs=4, max_model_len=16, vocab_size=32, max_logprobs=2)
PROMPTS = ([7], [1, 2, 3, 4, 5])

Fields = dict[str, np.ndarray]


def make_executor(*, check: bool = True, max_chained_steps: int = 1) -> FakeExecutor:
    executor = FakeExecutor(
        limits=LIMITS,
        num_blocks=9,
        block_size=4,
        max_blocks_per_seq=4,
        max_chained_steps=max_chained_steps,
        next_token=lambda history: len(history) + 10,
        check=check,
    )
    for row, prompt in enumerate(PROMPTS):
        packed = pack_row(
            LIMITS, token_ids=prompt, prompt_len=len(prompt), params=SamplingParams(), seed=0
        )
        executor.write_row(row, packed)
    return executor


def first_step() -> tuple[np.ndarray, Fields]:
    """Both prompts in one step; the fields are views to spoil it by."""
    packed = np.zeros(LAYOUT.size, np.int32)
    fields = {
        name: packed[LAYOUT.slices[name]].reshape(shape) for name, shape in LAYOUT.fields.items()
    }
    fields["num_rows"][...] = 2
    fields["num_single_rows"][...] = fields["num_steps"][...] = 1
    fields["device_row"][:2] = 0, 1
    fields["query_start"][:2] = 0, 1
    fields["query_len"][:2] = fields["kv_len"][:2] = 1, 5
    fields["flags"][:2] = 1
    fields["block_tables"][:2, :2] = [[3, 0], [5, 4]]
    return packed, fields


def test_a_right_step_draws_a_token_per_row() -> None:
    packed, _ = first_step()
    assert make_executor().launch(SHAPE, packed).read().token_ids == [11, 15, -1, -1]


SPOILERS: dict[str, Callable[[Fields], object]] = {
    "a null block between others": lambda f: f["block_tables"][1].put([0], [0]),
    "5 tokens need 2 blocks": lambda f: f["block_tables"][1].put([1], [0]),
    "rows 0 and 1 write slot": lambda f: f["block_tables"][0].put([0], [5]),
    "a block twice": lambda f: f["block_tables"][1].put([1], [5]),
    "no such block": lambda f: f["block_tables"][1].put([1], [9]),
    "query_start": lambda f: f["query_start"].put([1], [2]),
    "single behind chunks": lambda f: f["num_single_rows"].fill(0),
    "not single": lambda f: f["num_single_rows"].fill(2),
    "share a device row": lambda f: f["device_row"].put([1], [0]),
    "never written": lambda f: f["device_row"].put([1], [2]),
    "kv_len of padding": lambda f: f["kv_len"].put([3], [1]),
    "block_tables of padding": lambda f: f["block_tables"][2].put([0], [1]),
    "kv_len below": lambda f: f["kv_len"].put([1], [4]),
    "starts at 1 after 0": lambda f: f["kv_len"].put([1], [6]),
    "rows in a step": lambda f: f["num_rows"].fill(5),
    "unknown flags": lambda f: f["flags"].put([0], [4]),
    "0 steps": lambda f: f["num_steps"].fill(0),
    "a chunk in a chain": lambda f: f["num_steps"].fill(2),
}


@pytest.mark.parametrize("problem", SPOILERS)
def test_a_wrong_step_is_noticed(problem: str) -> None:
    packed, fields = first_step()
    SPOILERS[problem](fields)
    with pytest.raises(AssertionError, match=problem):
        make_executor().launch(SHAPE, packed).read()


def decode_step(*, table: list[int]) -> np.ndarray:
    """The next token of the first row."""
    packed, fields = first_step()
    packed[:] = 0
    for name in ("num_rows", "num_single_rows", "num_steps"):
        fields[name][...] = 1
    fields["query_len"][0], fields["kv_len"][0], fields["flags"][0] = 1, 2, 1
    fields["block_tables"][0, : len(table)] = table
    return packed


@pytest.mark.parametrize(
    ("table", "problem"), [([5], "holds other tokens"), ([7], "was never written")]
)
def test_a_stale_table_is_noticed(table: list[int], problem: str) -> None:
    executor = make_executor()
    executor.launch(SHAPE, first_step()[0])
    with pytest.raises(AssertionError, match=problem):
        executor.launch(SHAPE, decode_step(table=table)).read()


def spoilt_chain(problem: str) -> np.ndarray:
    """A decode of two steps, or what isn't one."""
    packed = decode_step(table=[3, 6])
    fields = {name: packed[part] for name, part in LAYOUT.slices.items()}
    fields["num_steps"][...] = 2
    if problem == "don't draw":
        fields["flags"][0] = 0
    elif problem.endswith("need 2 blocks"):
        fields["num_steps"][...] = 4
        fields["block_tables"][1] = 0
    return packed


@pytest.mark.parametrize(
    ("problem", "at_most"),
    [("2 steps, at most 1", 1), ("don't draw", 4), ("5 tokens need 2 blocks", 4)],
)
def test_a_wrong_chain_is_noticed(problem: str, at_most: int) -> None:
    executor = make_executor(max_chained_steps=at_most)
    executor.launch(SHAPE, first_step()[0])
    with pytest.raises(AssertionError, match=problem):
        executor.launch(SHAPE, spoilt_chain(problem)).read()


def test_a_chain_draws_a_token_per_row_and_step() -> None:
    executor = make_executor(max_chained_steps=4)
    executor.launch(SHAPE, first_step()[0])
    packed = decode_step(table=[3, 6])
    packed[LAYOUT.slices["num_steps"]] = 4
    results = executor.launch(SHAPE, packed).read()
    assert [results.step(index).token_ids[0] for index in range(4)] == [12, 13, 14, 15]


def test_inputs_changed_after_the_launch_are_seen() -> None:
    executor = make_executor()
    packed, fields = first_step()
    step = executor.launch(SHAPE, packed)
    fields["kv_len"][1] = 4
    with pytest.raises(AssertionError):
        step.read()


def test_without_checks_it_only_draws() -> None:
    packed, fields = first_step()
    fields["block_tables"][:] = 0
    step = make_executor(check=False).launch(SHAPE, packed)
    assert step.read().token_ids == [11, 15, -1, -1]


def test_nothing_runs_after_close() -> None:
    executor = make_executor()
    executor.close()
    with pytest.raises(EngineClosedError):
        executor.launch(SHAPE, first_step()[0])


def test_an_engine_that_breaks_a_claim_fails_loudly(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fake_engine(next_token=hashed_tokens([1, 2]))
    engine.submit([1, 2, 3], SamplingParams(max_tokens=9))
    launch = engine.executor.launch

    def spoilt(shape: StepShape, packed: np.ndarray) -> object:
        packed[InputLayout(shape, 16).slices["device_row"].start] = 1  # of the first row
        return launch(shape, packed)

    monkeypatch.setattr(engine.executor, "launch", spoilt)
    with pytest.raises(EngineClosedError, match="never written"):
        engine.run()

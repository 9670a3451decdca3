"""A device without a device: draws tokens from their history and checks what a GPU would not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastgen_jax.batching import ResultLayout, StepResults, StepShape
from fastgen_jax.errors import EngineClosedError
from fastgen_jax.sampling.row_limits import RowLimits
from fastgen_jax.testing.fake_cache import FakeCache
from fastgen_jax.testing.fake_row import FakeRow
from fastgen_jax.testing.fake_step import FakeInputs, FakeResults, read_inputs
from fastgen_jax.testing.fake_tokens import NextToken, fake_logprobs, hashed_tokens


class FakeDeviceError(RuntimeError):
    """The failure that ``Faults`` asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong on purpose.

    Attributes:
        has_nan: true for histories whose logits are NaN: their draw fails, with token -1.
        launch_error_at: number of the launch that raises FakeDeviceError, from 0.
        read_error_at: number of the step whose results can't be read.
    """

    has_nan: Callable[[Sequence[int]], bool] | None = None
    launch_error_at: int | None = None
    read_error_at: int | None = None


class FakeEvent(NamedTuple):
    """One call of the engine: "write_row" with the row, "launch" or "read" with the step."""

    kind: str
    number: int


class FakeStep:
    """A launched step, or chain of them, that runs when somebody reads it, after all before it."""

    def __init__(self, executor: FakeExecutor, number: int) -> None:
        self.number = number
        self.results: StepResults | None = None
        self._executor = executor

    def read(self) -> StepResults:
        """The step's results. AssertionError names the first claim of its inputs that is false."""
        self._executor.run_until(self)
        assert self.results is not None
        return self.results


class FakeExecutor:
    """A ``StepExecutor`` whose tokens are a pure function of each request's own history.

    Of the sampling parameters it honours ``min_tokens``, by the next token up that isn't held back,
    and the requests for log-probabilities.

    Row writes and steps run in the order of the calls, but not before results are read: so an
    array that the engine changes after handing it over shows, as it would on a device. With
    ``check`` every step's inputs are held against a model of the cache; a false one raises
    AssertionError, which the engine reports as a failed step.
    """

    def __init__(
        self,
        *,
        limits: RowLimits,
        num_blocks: int,
        block_size: int,
        max_blocks_per_seq: int,
        max_chained_steps: int = 1,
        next_token: NextToken | None = None,
        faults: Faults | None = None,
        check: bool = True,
    ) -> None:
        """``next_token`` maps prompt and outputs so far to the next token; hashed by default."""
        self.events: list[FakeEvent] = []
        self.rows: dict[int, FakeRow] = {}
        self.shapes: list[StepShape] = []  # of every launch
        self.chain_lengths: list[int] = []  # of every launch that ran
        self.is_closed = False
        self._limits = limits
        self._cache = FakeCache(num_blocks, block_size)
        self._max_blocks_per_seq = max_blocks_per_seq
        self._max_chained_steps = max_chained_steps
        self._next_token = next_token or hashed_tokens(range(limits.vocab_size))
        self._faults = faults or Faults()
        self._check = check
        self._queue: deque[tuple[FakeStep | int, StepShape | None, np.ndarray]] = deque()

    def write_row(self, row: int, packed: np.ndarray) -> None:
        """Put a request's settings and tokens into a device row, before the next launch."""
        self._check_open()
        self.events.append(FakeEvent("write_row", row))
        self._queue.append((row, None, packed))

    def launch(self, shape: StepShape, packed: np.ndarray) -> FakeStep:
        """Start a step and return at once."""
        self._check_open()
        step = FakeStep(self, len(self.shapes))
        if step.number == self._faults.launch_error_at:
            raise FakeDeviceError(f"launch {step.number} failed on purpose")
        self.events.append(FakeEvent("launch", step.number))
        self.shapes.append(shape)
        self._queue.append((step, shape, packed))
        return step

    def close(self) -> None:
        """Forget everything; nothing can be launched afterwards."""
        self.is_closed = True
        self._queue.clear()
        self.rows.clear()

    def run_until(self, step: FakeStep) -> None:
        """Run what was asked for up to and including a launched step."""
        self.events.append(FakeEvent("read", step.number))
        if step.number == self._faults.read_error_at:
            raise FakeDeviceError(f"step {step.number} failed on purpose")
        while step.results is None:
            target, shape, packed = self._queue.popleft()
            if isinstance(target, FakeStep):
                assert shape is not None
                target.results = self._run(shape, packed)
            else:
                assert 0 <= target < self._limits.max_num_seqs, f"no device row {target}"
                self.rows[target] = FakeRow(packed, self._limits)

    def _run(self, shape: StepShape, packed: np.ndarray) -> StepResults:
        chain = read_inputs(packed, shape, self._max_blocks_per_seq)
        if self._check:
            chain.check()
            limit = self._max_chained_steps
            assert chain.num_steps <= limit, f"{chain.num_steps} steps, at most {limit}"
        self.chain_lengths.append(chain.num_steps)
        layout = ResultLayout(shape, self._limits.max_logprobs, self._max_chained_steps)
        results = FakeResults(layout)
        for step in range(chain.num_steps):
            self._run_step(chain.at_step(step), results.chained(step))
        return results.pack()

    def _run_step(self, inputs: FakeInputs, results: FakeResults) -> None:
        if self._check:
            self._check_rows(inputs)
            self._run_cache(inputs)
        for index in range(inputs.num_rows):
            row = self.rows[int(inputs.device_row[index])]
            row.num_computed = int(inputs.kv_len[index])
            self._report_prompt(results, inputs, index, row)
            if inputs.samples(index):
                self._draw(results, index, row, row.num_computed)

    def _check_rows(self, inputs: FakeInputs) -> None:
        for index in range(inputs.num_rows):
            device_row = int(inputs.device_row[index])
            assert device_row in self.rows, f"device row {device_row} was never written"
            row = self.rows[device_row]
            start, kv_len = inputs.start(index), int(inputs.kv_len[index])
            assert kv_len <= self._limits.max_model_len, f"kv_len {kv_len} beyond the model's"
            self._check_continues(row, index, start)
            if inputs.samples(index):
                assert kv_len >= row.prompt_len, f"row {index} draws within its prompt"
                assert not row.has_drawn or kv_len == (row.num_computed or 0) + 1

    def _check_continues(self, row: FakeRow, index: int, start: int) -> None:
        """A row goes on where it stopped; before its first draw it may skip blocks it shares."""
        done = row.num_computed or 0
        skips_blocks = start > done and start % self._cache.block_size == 0 and not row.has_drawn
        assert start == done or skips_blocks, f"row {index} starts at {start} after {done} tokens"

    def _run_cache(self, inputs: FakeInputs) -> None:
        """All writes of a step come before its reads, as in every layer of a model."""
        cache = self._cache
        cache.begin_step()
        for index in range(inputs.num_rows):
            table, kv_len = inputs.block_tables[index], int(inputs.kv_len[index])
            cache.check_table(table, kv_len)
            digests = self.rows[int(inputs.device_row[index])].digests_to(kv_len)
            cache.write(index, table, inputs.start(index), digests)
        for index in range(inputs.num_rows):
            digests = self.rows[int(inputs.device_row[index])].digests_to(int(inputs.kv_len[index]))
            cache.check_read(index, inputs.block_tables[index], digests)

    def _draw(self, results: FakeResults, index: int, row: FakeRow, position: int) -> None:
        history = row.token_ids[:position]
        has_nan = self._faults.has_nan
        if has_nan is not None and has_nan(history):
            token_id = -1
        else:
            token_id = row.allowed(position, self._next_token(history))
        results.token_ids[index] = token_id
        row.append(position, token_id)
        if row.num_logprobs >= 0 and token_id >= 0:
            self._report(results, index, history, token_id)

    def _report_prompt(
        self, results: FakeResults, inputs: FakeInputs, index: int, row: FakeRow
    ) -> None:
        """Log-probabilities of the prompt tokens that follow the step's, where they are wanted."""
        if not inputs.wants_prompt_logprobs(index):
            return
        start, first = inputs.start(index), int(inputs.query_start[index])
        stop = min(int(inputs.kv_len[index]), row.prompt_len - 1)
        for position in range(start, stop):
            entry = inputs.shape.num_rows + first + position - start
            history = row.token_ids[: position + 1]
            self._report(results, entry, history, row.token_ids[position + 1])

    def _report(
        self, results: FakeResults, entry: int, history: Sequence[int], token_id: int
    ) -> None:
        limits = self._limits
        found = fake_logprobs(
            history, token_id, vocab_size=limits.vocab_size, k=limits.max_logprobs
        )
        results.put(entry, found)

    def _check_open(self) -> None:
        if self.is_closed:
            raise EngineClosedError("the engine was closed", remedy="build a new one")

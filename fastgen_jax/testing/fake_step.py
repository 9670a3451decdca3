"""The fake executor's side of the packed vectors: inputs out of one, results into another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fastgen_jax.batching import InputLayout, ResultLayout, StepResults, StepShape
from fastgen_jax.batching.inputs import (
    FLOAT_RESULTS,
    ROW_FLAG_PROMPT_LOGPROBS,
    ROW_FLAG_SAMPLES,
)
from fastgen_jax.testing.fake_tokens import FakeLogprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeInputs:
    """A step's inputs as named arrays; ``InputLayout`` says what they mean."""

    shape: StepShape
    num_rows: int
    num_single_rows: int
    num_steps: int
    device_row: np.ndarray
    query_start: np.ndarray
    query_len: np.ndarray
    kv_len: np.ndarray
    flags: np.ndarray
    block_tables: np.ndarray

    def at_step(self, step: int) -> FakeInputs:
        """The inputs of a step of the chain: each row so many tokens further."""
        kv_len = self.kv_len.copy()
        kv_len[: self.num_rows] += step
        return replace(self, kv_len=kv_len)

    def start(self, index: int) -> int:
        """The position of a row's first token in the step."""
        return int(self.kv_len[index] - self.query_len[index])

    def samples(self, index: int) -> bool:
        """True when the row draws a token."""
        return bool(self.flags[index] & ROW_FLAG_SAMPLES)

    def wants_prompt_logprobs(self, index: int) -> bool:
        """True when the row reports log-probabilities of its prompt."""
        return bool(self.flags[index] & ROW_FLAG_PROMPT_LOGPROBS)

    def check(self) -> None:
        """AssertionError unless the rows are consistent, in order, and followed by zeros."""
        tokens, rows = self.shape
        count, singles = self.num_rows, self.num_single_rows
        assert 0 < count <= rows, f"{count} rows in a step of {rows}"
        lengths = self.query_len[:count]
        assert (lengths > 0).all(), f"a row without tokens: {lengths}"
        assert (lengths[:singles] == 1).all(), f"not single: {lengths[:singles]}"
        assert (lengths[singles:] > 1).all(), f"single behind chunks: {lengths[singles:]}"
        expected = np.cumsum(lengths) - lengths
        assert (self.query_start[:count] == expected).all(), "query_start isn't the sum before"
        assert lengths.sum() <= tokens, f"{lengths.sum()} tokens in a step of {tokens}"
        assert (self.kv_len[:count] >= lengths).all(), "kv_len below query_len"
        assert len(np.unique(self.device_row[:count])) == count, "two rows share a device row"
        assert self.num_steps > 0, f"{self.num_steps} steps"
        if self.num_steps > 1:
            assert singles == count, "a chunk in a chain of steps"
            assert (self.flags[:count] == ROW_FLAG_SAMPLES).all(), "a chain of rows that don't draw"
        known = ROW_FLAG_SAMPLES | ROW_FLAG_PROMPT_LOGPROBS
        assert not (self.flags & ~known).any(), f"unknown flags: {self.flags}"
        for name in (
            "device_row", "query_start", "query_len", "kv_len", "flags", "block_tables",
        ):  # fmt: skip
            assert not getattr(self, name)[count:].any(), f"{name} of padding rows isn't zero"


def read_inputs(packed: np.ndarray, shape: StepShape, max_blocks_per_seq: int) -> FakeInputs:
    """The named arrays of a packed input vector; AssertionError for a wrong size or dtype."""
    layout = InputLayout(shape, max_blocks_per_seq)
    expected = (layout.size,)
    assert packed.dtype == np.int32, f"inputs of {packed.dtype}, not int32"
    assert packed.shape == expected, f"inputs of shape {packed.shape}, not {expected}"

    def field(name: str) -> np.ndarray:
        return packed[layout.slices[name]].reshape(layout.fields[name])

    return FakeInputs(
        shape=shape,
        num_rows=int(field("num_rows")),
        num_single_rows=int(field("num_single_rows")),
        num_steps=int(field("num_steps")),
        device_row=field("device_row"),
        query_start=field("query_start"),
        query_len=field("query_len"),
        kv_len=field("kv_len"),
        flags=field("flags"),
        block_tables=field("block_tables"),
    )


class FakeResults:
    """A step's results on their way into one vector; what nobody puts is zero, tokens are -1.

    In the vector of a chain those of step ``step``; ``chained`` gives the next one's.
    """

    def __init__(
        self, layout: ResultLayout, packed: np.ndarray | None = None, step: int = 0
    ) -> None:
        self._layout = layout
        self._packed = np.zeros(layout.size, np.int32) if packed is None else packed
        self._step = step
        self.token_ids = self._field("token_ids")
        self.token_ids[:] = -1

    def put(self, entry: int, found: FakeLogprobs) -> None:
        """Fill one entry of the log-probability fields."""
        self._field("logprob")[entry] = found.logprob
        self._field("rank")[entry] = found.rank
        self._field("top_ids")[entry] = found.top_ids
        self._field("top_logprobs")[entry] = found.top_logprobs

    def chained(self, step: int) -> FakeResults:
        """The place of another step's results in the same vector."""
        return FakeResults(self._layout, self._packed, step)

    def pack(self) -> StepResults:
        """The results as the engine reads them."""
        return StepResults(self._packed, self._layout)

    def _field(self, name: str) -> np.ndarray:
        begin = self._step * self._layout.step_size
        part = self._packed[begin : begin + self._layout.step_size][self._layout.slices[name]]
        if name in FLOAT_RESULTS:
            part = part.view(np.float32)
        return part.reshape(self._layout.fields[name])

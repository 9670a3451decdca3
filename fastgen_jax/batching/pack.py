"""A plan as one integer vector; block tables are kept between steps and only extended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastgen_jax.batching.inputs import (
    ROW_FLAG_PROMPT_LOGPROBS,
    ROW_FLAG_SAMPLES,
    InputLayout,
    StepShape,
)
from fastgen_jax.request import Request
from fastgen_jax.scheduling.plan import StepPlan

_UNSETTLED = -1


class StepPacker:
    """Packs plans for the smallest compiled shape that holds them; must see every plan that runs.

    A table is copied whole at every step from admission until its request first draws a token:
    up to there its blocks may be exchanged for shared ones. Afterwards blocks are only added.
    """

    def __init__(
        self, shapes: Sequence[StepShape], *, max_num_seqs: int, max_blocks_per_seq: int
    ) -> None:
        self.shapes = tuple(sorted(shapes))
        self._layouts = {shape: InputLayout(shape, max_blocks_per_seq) for shape in self.shapes}
        self._tables = np.zeros((max_num_seqs, max_blocks_per_seq), np.int32)
        self._num_blocks = np.full(max_num_seqs, _UNSETTLED, np.int32)
        # Up to where a row's positions report log-probabilities of the prompt; 0 asks for none.
        self._prompt_logprobs_end = np.zeros(max_num_seqs, np.int32)

    def use_shapes(self, shapes: Sequence[StepShape]) -> None:
        """Pack for these of the shapes from now on."""
        self.shapes = tuple(sorted(shapes))

    def shape_for(self, plan: StepPlan) -> StepShape:
        """The smallest compiled shape that holds the plan."""
        for shape in self.shapes:
            if plan.num_tokens <= shape.num_tokens and len(plan.rows) <= shape.num_rows:
                return shape
        raise ValueError(
            f"a plan of {plan.num_tokens} tokens in {len(plan.rows)} rows fits no compiled "
            f"shape of {self.shapes}"
        )

    def pack(self, plan: StepPlan, shape: StepShape) -> np.ndarray:
        """The plan as an int32 vector in the order of ``InputLayout``; a new array every time.

        New, because the device may still read the last one.
        """
        layout = self._layouts[shape]
        slices = layout.slices
        packed = np.zeros(layout.size, np.int32)
        count = len(plan.rows)
        if not count:
            return packed
        for request in plan.admitted:
            self._open_row(request)
        # Columns, because one pass of the interpreter a column is all the time there is.
        requests, start_column, length_column, sample_column = zip(*plan.rows, strict=True)
        device_rows = np.array([request.row for request in requests], np.intp)
        starts = np.array(start_column, np.int32)
        lengths = np.array(length_column, np.int32)
        self._update_tables(requests, device_rows, sample_column)
        ends = starts + lengths
        flags = np.array(sample_column, np.int32) * ROW_FLAG_SAMPLES
        flags += (starts < self._prompt_logprobs_end[device_rows]) * ROW_FLAG_PROMPT_LOGPROBS

        def fill(name: str, values: np.ndarray) -> None:
            start = slices[name].start
            packed[start : start + count] = values

        packed[slices["num_rows"]] = count
        packed[slices["num_single_rows"]] = np.count_nonzero(lengths == 1)
        fill("device_row", device_rows)
        fill("query_start", np.cumsum(lengths) - lengths)
        fill("query_len", lengths)
        fill("kv_len", ends)
        fill("flags", flags)
        tables = packed[slices["block_tables"]].reshape(shape.num_rows, -1)
        # mode="clip" writes to ``out`` without a copy between; the rows are in range anyway.
        np.take(self._tables, device_rows, axis=0, out=tables[:count], mode="clip")
        return packed

    def _open_row(self, request: Request) -> None:
        wants = request.params.prompt_logprobs is not None
        self._prompt_logprobs_end[request.row] = request.num_prompt_tokens - 1 if wants else 0
        self._num_blocks[request.row] = _UNSETTLED

    def _update_tables(
        self,
        requests: Sequence[Request],
        device_rows: np.ndarray,
        samples: Sequence[bool],
    ) -> None:
        num_blocks = np.array([len(request.block_ids) for request in requests], np.int32)
        for index in np.flatnonzero(num_blocks != self._num_blocks[device_rows]).tolist():
            request = requests[index]
            self._copy_table(request)
            self._num_blocks[request.row] = num_blocks[index] if samples[index] else _UNSETTLED

    def _copy_table(self, request: Request) -> None:
        block_ids, table = request.block_ids, self._tables[request.row]
        known = int(self._num_blocks[request.row])
        if known == _UNSETTLED:
            table[: len(block_ids)] = block_ids
            table[len(block_ids) :] = 0
        else:
            table[known : len(block_ids)] = block_ids[known:]

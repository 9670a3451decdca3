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
from fastgen_jax.scheduling.plan import PlannedRow, StepPlan


class StepPacker:
    """Packs plans for the smallest compiled shape that holds them."""

    def __init__(
        self, shapes: Sequence[StepShape], *, max_num_seqs: int, max_blocks_per_seq: int
    ) -> None:
        self.shapes = tuple(sorted(shapes))
        self._layouts = {shape: InputLayout(shape, max_blocks_per_seq) for shape in self.shapes}
        self._tables = np.zeros((max_num_seqs, max_blocks_per_seq), np.int32)
        self._num_blocks = [0] * max_num_seqs
        self._holder: list[Request | None] = [None] * max_num_seqs

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
        rows = plan.rows
        count = len(rows)
        device_rows = [row.request.row for row in rows]
        for row, device_row in zip(rows, device_rows, strict=True):
            request = row.request
            # Only a decode step leaves the earlier blocks as they were; a prompt's may be
            # exchanged for shared ones.
            if self._holder[device_row] is not request or row.start < request.num_prompt_tokens:
                self._copy_table(device_row, request, first=0)
            elif self._num_blocks[device_row] != len(request.block_ids):
                self._copy_table(device_row, request, first=self._num_blocks[device_row])
        starts = np.array([row.start for row in rows], np.int32)
        lengths = np.array([row.num_tokens for row in rows], np.int32)

        def fill(name: str, values: np.ndarray | list[int]) -> None:
            start = slices[name].start
            packed[start : start + count] = values

        packed[slices["num_rows"]] = count
        packed[slices["num_single_rows"]] = np.count_nonzero(lengths == 1)
        fill("device_row", device_rows)
        fill("query_start", np.cumsum(lengths) - lengths)
        fill("query_len", lengths)
        fill("kv_len", starts + lengths)
        fill("flags", [_flags(row) for row in rows])
        tables = packed[slices["block_tables"]].reshape(shape.num_rows, -1)
        tables[:count] = self._tables[device_rows]
        return packed

    def _copy_table(self, device_row: int, request: Request, *, first: int) -> None:
        block_ids = request.block_ids
        table = self._tables[device_row]
        table[first : len(block_ids)] = block_ids[first:]
        table[len(block_ids) :] = 0
        self._num_blocks[device_row] = len(block_ids)
        self._holder[device_row] = request


def _flags(row: PlannedRow) -> int:
    flags = ROW_FLAG_SAMPLES if row.samples else 0
    request = row.request
    if request.params.prompt_logprobs is not None and row.start < request.num_prompt_tokens - 1:
        flags |= ROW_FLAG_PROMPT_LOGPROBS
    return flags

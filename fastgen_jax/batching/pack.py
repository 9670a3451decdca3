"""A plan as one integer vector; block tables are kept between steps and only corrected."""

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


class StepPacker:
    """Packs plans for the smallest compiled shape that holds them.

    Must see every plan that runs, since a plan names only the blocks that changed.
    """

    def __init__(
        self, shapes: Sequence[StepShape], *, max_num_seqs: int, max_blocks_per_seq: int
    ) -> None:
        self.shapes = tuple(sorted(shapes))
        self._layouts = {shape: InputLayout(shape, max_blocks_per_seq) for shape in self.shapes}
        self._tables = np.zeros((max_num_seqs, max_blocks_per_seq), np.int32)
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
            wants = request.params.prompt_logprobs is not None
            self._prompt_logprobs_end[request.row] = request.num_prompt_tokens - 1 if wants else 0
        for request, position in plan.table_changes:
            self._change_table(request, position)
        rows = plan.rows
        flags = rows.samples * np.int32(ROW_FLAG_SAMPLES)
        wants_prompt = rows.starts < self._prompt_logprobs_end[rows.device_rows]
        flags += wants_prompt * np.int32(ROW_FLAG_PROMPT_LOGPROBS)

        def fill(name: str, values: np.ndarray) -> None:
            start = slices[name].start
            packed[start : start + count] = values

        packed[slices["num_rows"]] = count
        packed[slices["num_single_rows"]] = np.count_nonzero(rows.lengths == 1)
        packed[slices["num_steps"]] = plan.chain_length
        fill("device_row", rows.device_rows)
        fill("query_start", np.cumsum(rows.lengths) - rows.lengths)
        fill("query_len", rows.lengths)
        fill("kv_len", rows.starts + rows.lengths)
        fill("flags", flags)
        tables = packed[slices["block_tables"]].reshape(shape.num_rows, -1)
        # mode="clip" writes to ``out`` without a copy between; the rows are in range anyway.
        np.take(self._tables, rows.device_rows, axis=0, out=tables[:count], mode="clip")
        return packed

    def _change_table(self, request: Request, position: int) -> None:
        table, count = self._tables[request.row], len(request.block_ids)
        table[position:count] = request.block_ids[position:]
        if position == 0:
            table[count:] = 0  # whoever had the row before may have had more

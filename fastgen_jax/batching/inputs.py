"""Every field of a step's one input vector and one result vector: place, shape, padding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

ROW_FLAG_SAMPLES = 1
ROW_FLAG_PROMPT_LOGPROBS = 2

Vector = TypeVar("Vector")


class StepShape(NamedTuple):
    """The fixed size of a compiled step: T tokens through the backbone, R rows through the head."""

    num_tokens: int
    num_rows: int


@dataclass(frozen=True)
class _Layout:
    @property
    def fields(self) -> Mapping[str, tuple[int, ...]]:
        raise NotImplementedError

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each field lies in the vector."""
        slices: dict[str, slice] = {}
        start = 0
        for name, shape in self.fields.items():
            slices[name] = slice(start, start + math.prod(shape))
            start = slices[name].stop
        return slices

    @property
    def size(self) -> int:
        """Length of the vector, in 32-bit words."""
        return max(part.stop for part in self.slices.values())


@dataclass(frozen=True)
class InputLayout(_Layout):
    """The packed input, int32; token ids are not in it: the device reads them from its rows.

    Rows with one token come first, then chunks; rows from ``num_rows`` on are padding, all zero.

    Fields:
        num_rows: rows in use.
        num_single_rows: how many of them have exactly one token.
        num_steps: steps to run one after the other, each a token further than ``kv_len`` says for
            the first; 1 unless all rows have one token and draw.
        device_row [R]: the row's place in the device's row state.
        query_start [R]: the row's first token in the step.
        query_len [R]: its tokens in the step.
        kv_len [R]: its tokens up to and including this step.
        flags [R]: ROW_FLAG_SAMPLES, ROW_FLAG_PROMPT_LOGPROBS.
        block_tables [R, P]: its blocks in order of position; 0, the null block, beyond them.
    """

    shape: StepShape
    max_blocks_per_seq: int

    @property
    def fields(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes in the order of the vector."""
        rows = (self.shape.num_rows,)
        return {
            "num_rows": (),
            "num_single_rows": (),
            "num_steps": (),
            "device_row": rows,
            "query_start": rows,
            "query_len": rows,
            "kv_len": rows,
            "flags": rows,
            "block_tables": (*rows, self.max_blocks_per_seq),
        }


@dataclass(frozen=True)
class ResultLayout(_Layout):
    """The packed result, int32, with float32 fields bit-cast.

    A program that can chain ``max_steps`` steps has so many results of these fields behind each
    other; those of steps that didn't run mean nothing.

    The log-probability fields have R + T entries: those of the R drawn tokens, then those of the
    tokens that follow the step's T tokens in their prompts; zeros where nobody asked.

    Fields:
        token_ids [R]: the drawn token; -1 where the row failed or draws nothing.
        logprob [R + T], rank [R + T], top_ids [R + T, K], top_logprobs [R + T, K].
    """

    shape: StepShape
    max_logprobs: int
    max_steps: int = 1

    @property
    def fields(self) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes in the order of the vector."""
        tokens, rows = self.shape
        both, k = rows + tokens, self.max_logprobs
        return {
            "token_ids": (rows,),
            "logprob": (both,),
            "rank": (both,),
            "top_ids": (both, k),
            "top_logprobs": (both, k),
        }

    @cached_property
    def step_size(self) -> int:
        """Words of one step's results."""
        return super().size

    @property
    def size(self) -> int:
        """Length of the vector, in 32-bit words."""
        return self.max_steps * self.step_size


FLOAT_RESULTS = frozenset({"logprob", "top_logprobs"})

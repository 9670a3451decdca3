"""What one step has to compute, in the few numbers that its time depends on."""

from __future__ import annotations

from typing import NamedTuple

from fastgen_jax.scheduling.plan import StepPlan


class StepLoad(NamedTuple):
    """The size of a step.

    Attributes:
        num_tokens: tokens that are computed.
        num_rows: requests they belong to.
        num_keys: keys that their rows reach, each row's counted once: what attention reads.
        num_pairs: (query, key) pairs: what attention multiplies.
    """

    num_tokens: int
    num_rows: int
    num_keys: int
    num_pairs: int

    @classmethod
    def of(cls, plan: StepPlan) -> StepLoad:
        """The load of a plan's first step."""
        rows = plan.rows
        count, num_tokens = len(rows), plan.num_tokens
        starts = int(rows.starts.sum())
        if num_tokens == count:
            num_pairs = starts + count
        else:
            starts64, lengths = rows.starts.astype("int64"), rows.lengths.astype("int64")
            num_pairs = int((lengths * starts64 + lengths * (lengths + 1) // 2).sum())
        return cls(
            num_tokens=num_tokens,
            num_rows=count,
            num_keys=starts + num_tokens,
            num_pairs=num_pairs,
        )

    def later(self, num_steps: int) -> StepLoad:
        """The same decodes so many steps on, in a chain."""
        num_tokens, num_rows, num_keys, num_pairs = self
        more = num_steps * num_rows
        return StepLoad(num_tokens, num_rows, num_keys + more, num_pairs + more)

"""The limits a scheduler keeps."""

from __future__ import annotations

from dataclasses import dataclass

from fastgen_jax.errors import ConfigError
from fastgen_jax.kv.layout import usable_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Sizes of a step, of the device state and of the pool; refused where nothing could run.

    Attributes:
        token_budget: most tokens in a step.
        max_num_seqs: device rows: most requests running at once.
        max_step_rows: most requests in one step.
        max_model_len: most tokens of a request, prompt and output together.
        block_size: tokens in a block.
        num_blocks: blocks in the pool, the null block included.
        step_sizes: token counts of the compiled steps, ascending to the budget; each plan fills
            the one that suits the demand. Empty: every plan fills the budget.
        step_overhead: what a step costs before its first token, in tokens.
        max_chained_steps: most decode steps that one plan may chain.
        max_chained_tokens: most tokens of such a chain; None: no limit.
        chunk_multiple: chunks that end inside a prompt are cut to a multiple of this many tokens
            where the budget this frees is used.
        enable_prefix_caching: share blocks of equal content between requests.
        max_admission_skips: how many requests may be admitted past one that waits for blocks.
        max_admission_lookahead: how many requests may be refused blocks in one step before the
            rest of the queue is left for the next.
    """

    token_budget: int
    max_num_seqs: int
    max_step_rows: int
    max_model_len: int
    block_size: int
    num_blocks: int
    step_sizes: tuple[int, ...] = ()
    step_overhead: int = 0
    max_chained_steps: int = 1
    max_chained_tokens: int | None = None
    chunk_multiple: int = 1
    enable_prefix_caching: bool = True
    max_admission_skips: int = 64
    max_admission_lookahead: int = 32

    def __post_init__(self) -> None:
        """Refuse sizes that leave nothing to schedule."""
        for name, low in (
            ("token_budget", 1),
            ("max_num_seqs", 1),
            ("max_step_rows", 1),
            ("max_model_len", 2),
            ("block_size", 1),
            ("num_blocks", 2),
            ("max_chained_steps", 1),
            ("chunk_multiple", 1),
            ("max_admission_skips", 0),
            ("max_admission_lookahead", 1),
        ):
            value = getattr(self, name)
            if value < low:
                raise ConfigError(f"must be at least {low}", field=name, value=value)
        if self.max_chained_tokens is not None and self.max_chained_tokens < 1:
            raise ConfigError(
                "must be at least 1",
                field="max_chained_tokens",
                value=self.max_chained_tokens,
                remedy="leave it out for no limit",
            )
        if self.step_sizes and self.step_sizes[-1] != self.token_budget:
            raise ConfigError(
                f"must end with token_budget={self.token_budget}",
                field="step_sizes",
                value=self.step_sizes,
            )

    @property
    def usable_tokens(self) -> int:
        """Tokens whose keys and values fit in the pool at once."""
        return usable_tokens(self.num_blocks, self.block_size)

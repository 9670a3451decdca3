"""The settings of the R rows of one step, gathered from the S device rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from fastgen_jax.sampling.blocks import take_flat
from fastgen_jax.sampling.row_limits import RowLimits
from fastgen_jax.sampling.row_state import RowState


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowSettings:
    """What each row of the step asks for; rows that aren't valid ask for nothing.

    The scalars are read from one small array where they are used. As arrays of their own, each
    would cost a kernel, and kernels are what compiling takes its time for.

    Attributes:
        row: device row, 0 for rows that aren't valid.
        length: tokens of the request so far, 0 for rows that aren't valid; the drawn token goes
            there.
        scalars: the scalar fields of the rows, in the order of ``RowLimits.fields``.
        limits: where they are; static.
    """

    row: Int[Array, " R"]
    length: Int[Array, " R"]
    scalars: Int[Array, "R F"]
    limits: RowLimits = field(metadata={"static": True})

    @property
    def prompt_len(self) -> Int[Array, " R"]:
        """Tokens of the prompt."""
        return self._word("prompt_len")

    @property
    def seed(self) -> tuple[UInt[Array, " R"], UInt[Array, " R"]]:
        """High and low word of the random stream."""
        high, low = self._word("seed"), self._word("seed", 1)
        return high.astype(jnp.uint32), low.astype(jnp.uint32)

    @property
    def is_sampled(self) -> Bool[Array, " R"]:
        """True where the token is drawn at random."""
        return self._float("temperature") > 0

    @property
    def temperature(self) -> Float[Array, " R"]:
        """1 for rows that are greedy or not valid."""
        return jnp.where(self.is_sampled, self._float("temperature"), 1)

    @property
    def top_k(self) -> Int[Array, " R"]:
        """Tokens that top-k keeps."""
        return self._word("top_k")

    @property
    def top_p(self) -> Float[Array, " R"]:
        """The part of the probability that top-p keeps."""
        return self._float("top_p")

    @property
    def min_p(self) -> Float[Array, " R"]:
        """The least probability kept, as part of the largest."""
        return self._float("min_p")

    @property
    def has_top_k(self) -> Bool[Array, " R"]:
        """True where top-k may drop a token."""
        return self.top_k < self.limits.vocab_size

    @property
    def has_top_p(self) -> Bool[Array, " R"]:
        """True where top-p may drop a token."""
        return self.top_p < 1

    @property
    def repetition_penalty(self) -> Float[Array, " R"]:
        """1 is off."""
        return self._float("repetition_penalty")

    @property
    def presence_penalty(self) -> Float[Array, " R"]:
        """0 is off."""
        return self._float("presence_penalty")

    @property
    def frequency_penalty(self) -> Float[Array, " R"]:
        """0 is off."""
        return self._float("frequency_penalty")

    @property
    def has_penalty(self) -> Bool[Array, " R"]:
        """True where one of the three penalties is on."""
        of_output = (self.presence_penalty != 0) | (self.frequency_penalty != 0)
        return of_output | (self.repetition_penalty != 1)

    @property
    def has_allowed(self) -> Bool[Array, " R"]:
        """True where only some tokens are allowed."""
        return self._word("has_allowed") != 0

    @property
    def holds_back(self) -> Bool[Array, " R"]:
        """True where EOS and stop tokens can't be drawn yet."""
        return self.length < self._word("min_position")

    @property
    def has_edit(self) -> Bool[Array, " R"]:
        """True where the logits have to be changed before a token is chosen."""
        has_table = (self._word("has_bias") != 0) | (self._word("has_bad_words") != 0)
        return has_table | self.has_penalty | self.has_allowed | self.holds_back

    def _word(self, name: str, offset: int = 0) -> Int[Array, " R"]:
        column = self.limits.setting_slices[name].start + offset
        return lax.index_in_dim(self.scalars, column, axis=1, keepdims=False)

    def _float(self, name: str) -> Float[Array, " R"]:
        return lax.bitcast_convert_type(self._word(name), jnp.float32)


def gather_settings(
    state: RowState,
    rows: Int[Array, " R"],
    positions: Int[Array, " R"],
    is_valid: Bool[Array, " R"],
) -> RowSettings:
    """The settings of the step's rows; indices of rows that aren't valid may be anything."""
    row = jnp.where(is_valid, rows, 0)
    count = state.limits.num_scalars
    neutral = state.limits.neutral_settings[None, :count]
    scalars = take_flat(state.settings[:, :count], row)
    return RowSettings(
        row=row,
        length=jnp.where(is_valid, positions, 0),
        scalars=jnp.where(is_valid[:, None], scalars, neutral),
        limits=state.limits,
    )


def wants_logprobs(
    state: RowState, rows: Int[Array, " R"], is_valid: Bool[Array, " R"]
) -> Bool[Array, " R"]:
    """True for the valid rows whose drawn token is to come with log-probabilities."""
    column = state.limits.setting_slices["num_logprobs"].start
    return is_valid & (take_flat(state.settings[:, column], jnp.where(is_valid, rows, 0)) >= 0)

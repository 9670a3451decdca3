"""Log-probabilities under the model's own distribution, for drawn and for prompt tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fastgen_jax.sampling.blocks import BLOCK, first_argmax, take_blocks, to_blocks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenLogprobs:
    """How likely N tokens were, and what was likelier.

    Attributes:
        chosen: natural log-probability of the token.
        rank: 1 + how many tokens are strictly likelier.
        top_ids: the K most likely tokens, likeliest first, lower id first on ties.
        top: their log-probabilities.
    """

    chosen: Float[Array, " N"]
    rank: Int[Array, " N"]
    top_ids: Int[Array, "N K"]
    top: Float[Array, "N K"]


def empty_logprobs(count: int, k: int) -> TokenLogprobs:
    """Zeros for ``count`` tokens."""
    return TokenLogprobs(
        chosen=jnp.zeros(count, jnp.float32),
        rank=jnp.zeros(count, jnp.int32),
        top_ids=jnp.zeros((count, k), jnp.int32),
        top=jnp.zeros((count, k), jnp.float32),
    )


def token_logprobs(
    logits: Float[Array, "R V"], token_ids: Int[Array, " R"], k: int
) -> TokenLogprobs:
    """Raw log-softmax of the given tokens, their ranks, and the k most likely tokens."""
    _, peak = first_argmax(logits)
    log_total = peak + jnp.log(jnp.sum(jnp.exp(logits - peak[:, None]), axis=-1))
    chosen = jnp.take_along_axis(logits, jnp.maximum(token_ids, 0)[:, None], axis=1)
    likelier = jnp.sum(logits > chosen, axis=-1, dtype=jnp.int32)
    top_ids, top_logits = top_tokens(logits, k)
    return TokenLogprobs(
        chosen=chosen[:, 0] - log_total,
        rank=likelier + 1,
        top_ids=top_ids,
        top=top_logits - log_total[:, None],
    )


def top_tokens(
    logits: Float[Array, "R V"], k: int
) -> tuple[Int[Array, "R K"], Float[Array, "R K"]]:
    """The k largest logits per row, largest first, lower id first on ties.

    They lie in the k blocks of the largest maxima, so only k * 128 candidates are ordered.
    """
    rows, vocab_size = logits.shape
    if k == 0:
        return jnp.zeros((rows, 0), jnp.int32), jnp.zeros((rows, 0), logits.dtype)
    if vocab_size <= k * BLOCK:
        values, ids = lax.top_k(logits, k)
        return ids.astype(jnp.int32), values
    _, blocks = lax.top_k(jnp.max(to_blocks(logits, -jnp.inf), axis=-1), k)
    # In the order of the vocabulary, since top_k puts the earlier candidate first on ties.
    blocks = jnp.sort(blocks.astype(jnp.int32), axis=-1)
    candidates, ids = take_blocks(logits, blocks, -jnp.inf)
    values, columns = lax.top_k(candidates, k)
    return jnp.take_along_axis(ids, columns, axis=1), values


def prompt_logprobs(
    hidden_to_logits: Callable[[Float[Array, "R E"]], Float[Array, "R V"]],
    hidden: Float[Array, "T E"],
    targets: Int[Array, " T"],
    is_wanted: Bool[Array, " T"],
    *,
    group: int,
    k: int,
) -> TokenLogprobs:
    """Log-probabilities of the T target tokens; zeros where they aren't wanted.

    Wanted tokens are taken ``group`` at a time: the work follows their number, nothing runs when
    there are none, and only one [group, V] block of logits exists at a time.

    Args:
        hidden_to_logits: the head; maps ``group`` hidden rows to float32 logits.
        hidden: the hidden state before each target.
        targets: the token that followed.
        is_wanted: which of them to compute.
        group: rows per call of the head, the step's R.
        k: alternatives per token, K.
    """
    tokens = hidden.shape[0]
    padded = -(-tokens // group) * group
    # Positions of the wanted tokens, packed to the front; the rest is out of range.
    wanted = jnp.nonzero(is_wanted, size=padded, fill_value=tokens)[0].astype(jnp.int32)

    def take_group(turn: Int[Array, ""], done: TokenLogprobs) -> TokenLogprobs:
        index = lax.dynamic_slice_in_dim(wanted, turn * group, group)
        source = jnp.minimum(index, tokens - 1)
        found = token_logprobs(hidden_to_logits(hidden[source]), targets[source], k)
        return jax.tree.map(lambda whole, new: whole.at[index].set(new, mode="drop"), done, found)

    count = jnp.sum(is_wanted, dtype=jnp.int32)
    turns = (count + (group - 1)) // group
    return lax.fori_loop(jnp.zeros_like(turns), turns, take_group, empty_logprobs(tokens, k))

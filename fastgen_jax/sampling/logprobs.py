"""Log-probabilities under the model's own distribution, for drawn and for prompt tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from fastgen_jax.sampling.blocks import (
    BLOCK,
    flat_index,
    pad_to_blocks,
    take_blocks,
    take_flat,
    to_blocks,
)


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


def token_logprobs(
    logits: Float[Array, "R V"], token_ids: Int[Array, " R"], k: int
) -> TokenLogprobs:
    """Raw log-softmax of the given tokens, their ranks, and the k most likely tokens.

    Ids of -1 are harmless; they get what token 0 has.
    """
    logits = pad_to_blocks(logits, -jnp.inf)
    maxima = jnp.max(to_blocks(logits), axis=-1)
    peak = jnp.max(maxima, axis=-1)
    log_total = peak + jnp.log(jnp.sum(jnp.exp(logits - peak[:, None]), axis=-1))
    index = flat_index(jnp.maximum(token_ids, 0)[:, None], logits.shape[1])
    chosen = take_flat(logits.reshape(-1), index)
    # Counted in float32, which is exact here, and quicker to compile than integers.
    likelier = jnp.sum((logits > chosen).astype(jnp.float32), axis=-1)
    top_ids, top_logits = top_tokens(logits, maxima, k)
    return TokenLogprobs(
        chosen=chosen[:, 0] - log_total,
        rank=likelier.astype(jnp.int32) + 1,
        top_ids=top_ids,
        top=top_logits - log_total[:, None],
    )


def top_tokens(
    logits: Float[Array, "R W"], maxima: Float[Array, "R C"], k: int
) -> tuple[Int[Array, "R K"], Float[Array, "R K"]]:
    """The k largest logits per row, largest first, lower id first on ties.

    They lie in the k blocks of the largest maxima, so only k * 128 candidates are ordered.
    """
    rows, width = logits.shape
    if k == 0:
        return jnp.zeros((rows, 0), jnp.int32), jnp.zeros((rows, 0), logits.dtype)
    if width <= k * BLOCK:
        values, ids = lax.top_k(logits, k)
        return ids, values
    _, blocks = lax.top_k(maxima, k)
    # In the order of the vocabulary, since top_k puts the earlier candidate first on ties.
    blocks = lax.sort(blocks, dimension=1, is_stable=False)
    values, columns = lax.top_k(take_blocks(logits, blocks), k)
    block = take_flat(blocks.reshape(-1), flat_index(columns // BLOCK, k))
    return block * BLOCK + columns % BLOCK, values


def wanted_logprobs(
    hidden_to_logits: Callable[[Float[Array, "R E"]], Float[Array, "R V"]],
    hidden: Float[Array, "N E"],
    targets: Int[Array, " N"],
    is_wanted: Bool[Array, " N"],
    *,
    group: int,
    k: int,
) -> TokenLogprobs:
    """Log-probabilities of the N target tokens; zeros where they aren't wanted.

    Wanted tokens are taken ``group`` at a time: the work follows their number, nothing runs when
    there are none, and only one [group, V] block of logits exists at a time.

    Args:
        hidden_to_logits: the head; maps ``group`` hidden rows to float32 logits.
        hidden: the hidden state before each target.
        targets: the token that followed; -1 is harmless.
        is_wanted: which of them to compute.
        group: rows per call of the head, the step's R.
        k: alternatives per token, K.
    """
    tokens = hidden.shape[0]
    # Positions of the wanted tokens in front, then those of the others, which are out of range.
    position = np.arange(tokens, dtype=np.int32)
    order = lax.sort(jnp.where(is_wanted, position, tokens), is_stable=False)
    order = jnp.pad(order, (0, group), constant_values=tokens)

    def is_left(carry: tuple[Array, Array]) -> Bool[Array, ""]:
        first = lax.dynamic_slice(order, (carry[0],), (1,), allow_negative_indices=False)
        return first[0] < tokens

    def take_group(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        start, done = carry
        index = lax.dynamic_slice(order, (start,), (group,), allow_negative_indices=False)
        source = jnp.minimum(index, tokens - 1)
        logits = hidden_to_logits(take_flat(hidden, source))
        found = _pack(token_logprobs(logits, take_flat(targets, source), k))
        done = done.at[index].set(found, mode="drop", wrap_negative_indices=False)
        return start + group, done

    start = (jnp.zeros((), jnp.int32), jnp.zeros((tokens, 2 + 2 * k), jnp.int32))
    return _unpack(lax.while_loop(is_left, take_group, start)[1], k)


def _pack(found: TokenLogprobs) -> Int[Array, "N F"]:
    """One array for all fields: each array that a loop carries costs kernels."""
    chosen = lax.bitcast_convert_type(found.chosen, jnp.int32)[:, None]
    top = lax.bitcast_convert_type(found.top, jnp.int32)
    return jnp.concatenate([chosen, found.rank[:, None], found.top_ids, top], axis=1)


def _unpack(words: Int[Array, "N F"], k: int) -> TokenLogprobs:
    return TokenLogprobs(
        chosen=lax.bitcast_convert_type(words[:, 0], jnp.float32),
        rank=words[:, 1],
        top_ids=words[:, 2 : 2 + k],
        top=lax.bitcast_convert_type(words[:, 2 + k :], jnp.float32),
    )

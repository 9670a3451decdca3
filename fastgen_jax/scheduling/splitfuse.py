"""Dynamic SplitFuse: how a step's token budget is split between decodes and prompts.

Decodes come first, one token each. Prompts take the rest in order, each all it still needs, until
one is cut by the budget. So a step is full whenever there is enough work, and no decode waits for
a long prompt.

A cut chunk can be rounded down to a multiple of ``chunk_multiple`` (a kernel's tile). The tokens
this frees, fewer than ``chunk_multiple``, go to the prompts next in order as long as each fits in
them whole; the first that doesn't ends the search. Whatever is left then goes back to the cut
chunk. So rounding never leaves budget unused, it only lets short prompts in where they fit.
"""

from __future__ import annotations

from collections.abc import Sequence


def next_chunk(
    num_remaining: int, budget_left: int, chunk_multiple: int = 1, *, after_cut: bool = False
) -> int:
    """Tokens for a prompt that needs ``num_remaining`` more; 0 when it must wait.

    ``after_cut`` says that a chunk before it was rounded down: then it runs whole or not at all.
    """
    if num_remaining <= budget_left:
        return num_remaining
    if after_cut:
        return 0
    rounded = budget_left - budget_left % chunk_multiple
    return rounded or budget_left


def split_budget(
    token_budget: int, num_decodes: int, prompts: Sequence[int], *, chunk_multiple: int = 1
) -> tuple[int, tuple[int, ...]]:
    """How many decodes run, and the tokens each prompt gets, on plain numbers.

    ``prompts`` are the tokens each prompt still needs, in order. This is the whole algorithm
    without rows and blocks; the scheduler takes the same steps while it also hands out those.
    """
    decodes = min(num_decodes, token_budget)
    left = token_budget - decodes
    chunks = [0] * len(prompts)
    cut: int | None = None
    for index, num_remaining in enumerate(prompts):
        chunk = next_chunk(num_remaining, left, chunk_multiple, after_cut=cut is not None)
        if chunk == 0:
            break
        chunks[index] = chunk
        left -= chunk
        if chunk < num_remaining:
            cut = index
    if cut is not None:
        chunks[cut] += left
    return decodes, tuple(chunks)


def choose_budget(sizes: Sequence[int], *, demand: int, num_decodes: int, overhead: int) -> int:
    """The compiled step size that serves the demand at the least cost per token.

    A step of a fixed size costs the same however full it is: ``overhead + size``, in tokens. So
    37 waiting tokens are better served by two steps of 32 than by one of 256. A size that leaves
    a part of the demand waiting must have as much room beside the decodes as they take, or
    prompts would trickle in.

    Args:
        sizes: ascending; the last one is the token budget.
        demand: tokens that could run now, decodes included; counted no further than needed.
        num_decodes: of these, decodes.
        overhead: what a step costs before its first token, in tokens.
    """
    best, best_rate = sizes[-1], 0.0
    for size in sizes:
        if size < demand and size < 2 * num_decodes and size != sizes[-1]:
            continue
        rate = min(size, demand) / (overhead + size)
        if rate > best_rate:
            best, best_rate = size, rate
    return best

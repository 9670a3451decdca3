"""The longest time between two tokens of a request, and what made it long."""

from __future__ import annotations

import math
from itertools import pairwise

from fastgen_jax.observe import words
from fastgen_jax.observe.lives import RequestLife, TokenTime
from fastgen_jax.observe.records import StepRecord
from fastgen_jax.scheduling.plan import Reason

# A gap is worth a sentence when it stands out so far from the mean.
_STANDS_OUT = 1.2


def slowest_gap(life: RequestLife) -> str | None:
    """A sentence about the slowest gap; None where all are about the same."""
    tokens = life.token_times
    gaps = [after.time - before.time for before, after in pairwise(tokens)]
    if not gaps:
        return None
    slowest = max(gaps)
    if slowest <= 0 or slowest < _STANDS_OUT * sum(gaps) / len(gaps):
        return None
    at = gaps.index(slowest)
    before, after = tokens[at], tokens[at + 1]
    cause = _cause(life, before, after)
    gap = f"The slowest gap was {words.seconds(slowest)}, before output token {after.number}"
    return f"{gap}: {cause}."


def _cause(life: RequestLife, before: TokenTime, after: TokenTime) -> str:
    between = [m for m in life.moments if before.position < m.position < after.position]
    if any(moment.reason is Reason.PREEMPTED for moment in between):
        return "it was preempted in between"
    waits = [m for m in between if not m.ran and m.reason is not Reason.IN_FLIGHT]
    if waits:
        number = words.count(len(waits), "step")
        return f"{number} left it out {words.because(waits[0].reason)}"
    # Tokens of one chain come from the same launch.
    first = min(before.position + 1, after.position)
    steps = life.steps[first : after.position + 1]
    timed = [step for step in steps if not math.isnan(step.seconds)]
    if not timed:
        return "its step's times aren't known"
    longest = max(timed, key=lambda step: step.seconds)
    pause = _pause(life, longest)
    if pause > longest.seconds / 2:
        return f"nobody stepped the engine for {words.seconds(pause)}"
    took = f"step {longest.index} took {words.seconds(longest.seconds)}"
    return f"{took} since {_carried(longest)}"


def _pause(life: RequestLife, step: StepRecord) -> float:
    """How long the host was away while the step was the one to be read next.

    The plan after it is made as soon as the step before it has been read, unless nobody asks.
    """
    for later in life.steps:
        if later.index > step.index:
            return min(later.plan.time, step.end) - step.start
    return 0.0


def _carried(step: StepRecord) -> str:
    plan = step.plan
    ids = [
        row.request.request_id
        for row in plan.rows[plan.num_settled :]
        if not _is_decode(row.request.num_prompt_tokens, row.start, row.num_tokens)
    ]
    num_chained = f" in a chain of {plan.chain_length}" if plan.chain_length > 1 else ""
    decodes = words.count(plan.num_decode_tokens, "decode") + num_chained
    if not ids:
        return f"it carried {decodes} and nothing else"
    beside = f" beside {decodes}" if plan.num_decode_tokens else ""
    number = words.count(step.num_prefill_tokens, "prompt token")
    return f"it carried {number} of {words.named(ids)}{beside}"


def _is_decode(num_prompt: int, start: int, num_tokens: int) -> bool:
    return num_tokens == 1 and start >= num_prompt

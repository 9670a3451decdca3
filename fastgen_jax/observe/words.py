"""Numbers, ids and reasons as a sentence says them."""

from __future__ import annotations

from collections.abc import Sequence

from fastgen_jax.scheduling.plan import Reason

# Why a request waited, after "because"; what it did in a step, for those that ran.
REASON_WORDS = {
    Reason.DECODE: "it decoded",
    Reason.CHUNK: "it computed a slice of its prompt",
    Reason.LAST_CHUNK: "it computed the rest of its prompt",
    Reason.PREEMPTED: "it had lost its blocks",
    Reason.NO_BUDGET: "the step's tokens were all given out",
    Reason.NO_ROW: "every row was taken",
    Reason.NO_BLOCKS: "the cache had too few free blocks",
    Reason.POLICY_ORDER: "an earlier request had been passed over too often",
    Reason.POLICY_RULES: "the policy composed the step without it",
    Reason.IN_FLIGHT: "its last token was still in flight",
}
_MOST_NAMES = 4


def because(reason: Reason | None) -> str:
    """ "because every row was taken"; of a queue that nobody looked at, without a reason."""
    return "because " + ("nobody was admitted" if reason is None else REASON_WORDS[reason])


def seconds(value: float) -> str:
    """A duration with two or three digits and its unit."""
    if value <= 0:
        return "0 s"
    if value < 0.0005:
        return f"{1e6 * value:.0f} µs"
    if value < 0.0995:
        return f"{1e3 * value:.2g} ms" if value < 0.00995 else f"{1e3 * value:.0f} ms"
    if value < 119.5:
        return f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"
    return f"{value / 60:.1f} min"


def count(number: int, noun: str) -> str:
    """ "1 step", "1,200 steps"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + f" and {words[-1]}"


def chunks(sizes: Sequence[int]) -> str:
    """ "one chunk of 9 tokens", "3 chunks of 64 tokens, the last of 20", and so on."""
    if len(sizes) == 1:
        return f"one chunk of {count(sizes[0], 'token')}"
    if len(set(sizes)) == 1:
        return f"{len(sizes)} chunks of {count(sizes[0], 'token')}"
    if len(sizes) > 2 and len(set(sizes[:-1])) == 1:
        return f"{len(sizes)} chunks of {count(sizes[0], 'token')}, the last of {sizes[-1]:,}"
    if len(sizes) > 2 * _MOST_NAMES:
        return f"{len(sizes)} chunks of {min(sizes):,} to {max(sizes):,} tokens"
    return f"{len(sizes)} chunks of {listed([f'{size:,}' for size in sizes])} tokens"


def named(ids: Sequence[str]) -> str:
    """ "request 7", "requests 7 and 9", "requests 7, 9, 12, 13 and 5 others"."""
    if len(ids) == 1:
        return f"request {ids[0]}"
    if len(ids) <= _MOST_NAMES + 1:
        return f"requests {listed(ids)}"
    return f"requests {', '.join(ids[:_MOST_NAMES])} and {len(ids) - _MOST_NAMES} others"


def steps(first: int, last: int) -> str:
    """ "in step 4", "in steps 4 to 9"."""
    return f"in step {first}" if first == last else f"in steps {first} to {last}"

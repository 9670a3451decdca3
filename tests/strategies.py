"""Hypothesis strategies for everything that is scheduled."""

from __future__ import annotations

from hypothesis import strategies as st

from fastgen_jax.request import Request
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.scheduling.config import SchedulerConfig

NUM_TOKEN_IDS = 3  # few, so that prompts share prefixes by chance


def make_request(
    request_id: str = "a",
    prompt: int | tuple[int, ...] = 4,
    max_tokens: int = 4,
    *,
    priority: int = 0,
    salt: str | None = None,
    prompt_logprobs: int | None = None,
) -> Request:
    """A request; an int prompt is that many tokens that no other request's prompt starts with."""
    if isinstance(prompt, int):
        offset = 1000 + sum(ord(c) * 31**i for i, c in enumerate(request_id)) * 1000
        prompt = tuple(range(offset, offset + prompt))
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=SamplingParams(max_tokens=max_tokens, prompt_logprobs=prompt_logprobs),
        max_output_tokens=max_tokens,
        priority=priority,
        cache_salt=salt,
    )


@st.composite
def scheduler_configs(draw: st.DrawFn) -> SchedulerConfig:
    """Tiny schedulers: pools of a few blocks, so that everything contends."""
    max_num_seqs = draw(st.integers(1, 5))
    return SchedulerConfig(
        token_budget=draw(st.integers(1, 12)),
        max_num_seqs=max_num_seqs,
        max_step_rows=draw(st.integers(1, max_num_seqs)),
        max_model_len=draw(st.sampled_from([8, 16, 40])),
        block_size=draw(st.integers(1, 4)),
        num_blocks=draw(st.integers(3, 12)),
        max_chained_steps=draw(st.sampled_from([1, 1, 2, 4])),
        max_chained_tokens=draw(st.sampled_from([None, 1, 5])),
        chunk_multiple=draw(st.sampled_from([1, 2, 3, 4])),
        enable_prefix_caching=draw(st.booleans()),
        max_admission_skips=draw(st.integers(0, 3)),
        max_admission_lookahead=draw(st.integers(1, 4)),
    )


@st.composite
def crowded_configs(draw: st.DrawFn) -> SchedulerConfig:
    """Pools far too small for the rows: short prompts get in, and grow till they preempt."""
    block_size = draw(st.integers(1, 3))
    return SchedulerConfig(
        token_budget=draw(st.sampled_from([4, 8, 64])),
        max_num_seqs=8,
        max_step_rows=draw(st.sampled_from([4, 8])),
        max_model_len=draw(st.integers(6, 12)) * block_size,
        block_size=block_size,
        num_blocks=draw(st.integers(11, 20)),
        max_chained_steps=draw(st.sampled_from([1, 1, 2, 4])),
        max_chained_tokens=draw(st.sampled_from([None, 1, 5])),
        chunk_multiple=draw(st.sampled_from([1, 2, 4])),
        enable_prefix_caching=draw(st.booleans()),
        max_admission_skips=draw(st.integers(0, 3)),
    )


def prompts(max_size: int = 24) -> st.SearchStrategy[tuple[int, ...]]:
    """Prompts over few token ids, often with a long common prefix."""
    tokens = st.lists(st.integers(0, NUM_TOKEN_IDS - 1), min_size=1, max_size=max_size)
    repeated = st.builds(
        lambda n, tail: (0,) * n + tuple(tail),
        st.integers(1, max_size),
        st.lists(st.integers(0, 1), max_size=2),
    )
    return st.one_of(repeated, tokens.map(tuple))


def salts() -> st.SearchStrategy[str | None]:
    """Cache salts, mostly none."""
    return st.sampled_from([None, None, "red", ""])

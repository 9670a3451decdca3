from __future__ import annotations

from benchmarks.prefix_cache import PrefixCache, SharedPrefix, num_differing

SHARED = SharedPrefix(num_requests=5, prefix_length=40, own_length=6)


def test_requests_share_the_prefix_and_nothing_else():
    requests = SHARED.requests(1, max_tokens=2)
    prompts = [request.prompt_token_ids for request in requests]
    assert {len(prompt) for prompt in prompts} == {46}
    assert len({prompt[:40] for prompt in prompts}) == 1
    assert len({prompt[40:] for prompt in prompts}) == 5
    assert {request.max_tokens for request in requests} == {2}
    assert SHARED.num_prompt_tokens == 5 * 46


def test_rounds_share_the_prefix_and_nothing_else():
    first, second = (SHARED.requests(number, max_tokens=1) for number in (1, 2))
    assert first[0].prompt_token_ids[:40] == second[0].prompt_token_ids[:40]
    own = {request.prompt_token_ids[40:] for request in (*first, *second)}
    assert len(own) == 10
    assert first == SHARED.requests(1, max_tokens=1)


def test_differing_requests_are_counted():
    assert num_differing([[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 9], [0, 6]]) == 2


def test_both_engines_are_equal_but_for_the_cache():
    with_cache, without = PrefixCache(shared=SHARED).commands().values()
    assert with_cache == [*without, "--prefix-caching"]
    blocks = int(without[without.index("--num-kv-blocks") + 1])
    assert blocks == (5 + 1) * 2 + 1  # 40 + 6 + 16 tokens are two blocks each

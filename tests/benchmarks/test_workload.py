from __future__ import annotations

import statistics

from benchmarks.workload import Mix, Workload, draw_workload


def test_lengths_follow_the_mix():
    mix = Mix(num_requests=4000, prompt_mean=20, output_mean=40, seed=3)
    workload = draw_workload(mix)
    prompts = [len(request.prompt_token_ids) for request in workload.requests]
    outputs = [request.max_tokens for request in workload.requests]
    for lengths, mean in ((prompts, 20), (outputs, 40)):
        assert abs(statistics.mean(lengths) - mean) < 0.02 * mean
        assert abs(statistics.stdev(lengths) - 0.3 * mean) < 0.03 * mean
        assert min(lengths) >= mix.min_length


def test_short_draws_count_as_min_length():
    workload = draw_workload(Mix(num_requests=50, prompt_mean=2, output_mean=3))
    assert min(len(request.prompt_token_ids) for request in workload.requests) == 4
    assert min(request.max_tokens for request in workload.requests) == 4


def test_no_deviation_makes_all_lengths_equal():
    mix = Mix(num_requests=5, prompt_mean=9, output_mean=6, relative_deviation=0.0)
    workload = draw_workload(mix)
    assert {len(request.prompt_token_ids) for request in workload.requests} == {9}
    assert workload.num_prompt_tokens == 45
    assert workload.num_output_tokens == 30
    assert workload.max_request_tokens == 15


def test_tokens_stay_in_the_vocabulary():
    mix = Mix(num_requests=20, prompt_mean=50, vocab_size=200, num_special_ids=150)
    ids = [t for request in draw_workload(mix).requests for t in request.prompt_token_ids]
    assert min(ids) >= 150
    assert max(ids) < 200


def test_seed_decides_everything():
    assert draw_workload(Mix(num_requests=3)) == draw_workload(Mix(num_requests=3))
    assert draw_workload(Mix(num_requests=3)) != draw_workload(Mix(num_requests=3, seed=8))


def test_json_round_trip():
    workload = draw_workload(Mix(num_requests=3, prompt_mean=6, output_mean=5))
    assert Workload.from_json(workload.to_json()) == workload

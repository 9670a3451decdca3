"""Each sampling parameter changes the outcome as the reference says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgen_jax.sampling_params import SamplingParams

GREEDY = {"temperature": 0.0}


def top_after(logits, bench, case):
    return int(bench.run(np.stack([logits] * 4), [case] + [None] * 3)[0])


def probabilities(bench, logits, case, draws=4096):
    """Frequencies over positions beyond the history, four rows at a time."""
    bench.put(0, case)
    counts = np.zeros(logits.shape[0])
    for start in range(0, draws, 4):
        positions = len(case.history) + np.arange(start, start + 4)
        drawn = bench.run_rows([logits] * 4, [0] * 4, positions, [True] * 4)
        np.add.at(counts, drawn, 1)
    return counts / draws


def test_greedy_takes_the_first_of_equals(bench, make_case):
    logits = np.zeros((4, 203), np.float32)
    logits[0, [140, 150]] = 3.0
    logits[1, [5, 202]] = 3.0
    logits[2, 202] = 3.0
    tokens = bench.run(logits, [make_case(SamplingParams(**GREEDY))] * 4)
    assert tokens.tolist() == [140, 5, 202, 0]


def test_padding_rows_draw_nothing(bench, make_case, logits):
    case = make_case(SamplingParams(**GREEDY))
    tokens = bench.run(logits, [None, case, None, case]).tolist()
    assert tokens == [-1, int(logits[1].argmax()), -1, int(logits[3].argmax())]


def test_logit_bias(bench, make_case, logits):
    case = make_case(SamplingParams(logit_bias={202: 100.0, 3: -100.0}, **GREEDY))
    assert top_after(logits[0], bench, case) == 202
    best = int(logits[0].argmax())
    case = make_case(SamplingParams(logit_bias={best: -100.0}, **GREEDY))
    assert top_after(logits[0], bench, case) == int(np.argsort(-logits[0])[1])


@pytest.mark.parametrize("allowed", [(202,), (0,), (31, 32), (63, 64, 191, 192), (5, 5, 201)])
def test_allowed_token_ids_at_the_edges_of_words(bench, make_case, logits, allowed):
    for temperature in (0.0, 1.0):
        params = SamplingParams(allowed_token_ids=allowed, temperature=temperature)
        cases = [make_case(params, seed=seed) for seed in range(4)]
        assert set(bench.run(logits, cases).tolist()) <= set(allowed)
        bench.check(logits, cases)


def test_repetition_penalty_covers_prompt_and_output(bench, make_case):
    logits = np.full((4, 203), -9.0, np.float32)
    logits[:, 9], logits[:, 20], logits[:, 100] = 4.0, 3.9, 2.5  # in prompt, in output, in none
    case = make_case(SamplingParams(repetition_penalty=2.0, **GREEDY))
    assert top_after(logits[0], bench, case) == 100
    logits[:] = -9.0
    logits[:, 9], logits[:, 100] = -1.0, -1.5  # negative logits are multiplied
    assert top_after(logits[0], bench, case) == 100


def test_presence_and_frequency_cover_the_output_only(bench, make_case):
    logits = np.full((4, 203), -9.0, np.float32)
    logits[:, 9], logits[:, 20], logits[:, 100] = 1.0, 2.0, 0.9
    for name in ("presence_penalty", "frequency_penalty"):
        case = make_case(SamplingParams(**{name: 1.5}, **GREEDY))
        assert top_after(logits[0], bench, case) == 9
    history = (9, 20, 20, 20)
    logits[:, 20] = 4.0
    once = make_case(SamplingParams(presence_penalty=1.5, **GREEDY), history, 1)
    per_use = make_case(SamplingParams(frequency_penalty=1.5, **GREEDY), history, 1)
    assert top_after(logits[0], bench, once) == 20
    assert top_after(logits[0], bench, per_use) == 9


def test_min_tokens_holds_eos_and_stop_tokens_back_until_reached(bench, make_case):
    logits = np.zeros((4, 203), np.float32)
    logits[:, [2, 7, 50, 60]] = 9.0, 8.0, 10.0, 1.0
    params = SamplingParams(min_tokens=3, stop_token_ids=[50], **GREEDY)
    prompt = (1, 2, 3)
    cases = [make_case(params, prompt + (4,) * n, 3) for n in (0, 2, 3, 4)]
    assert bench.run(logits, cases).tolist() == [60, 60, 50, 50]


def test_bad_words_match_their_prefix(bench, make_case):
    logits = np.zeros((4, 203), np.float32)
    logits[:, 40], logits[:, 41] = 5.0, 4.0
    params = SamplingParams(bad_words=["x"], **GREEDY)

    def tokens(word, histories):
        cases = [make_case(params, h, 1, bad_word_ids=[word]) for h in histories]
        return bench.run(logits, cases).tolist()

    assert tokens((40,), [(1,), (1, 2), (40,), (3, 3, 3)]) == [41] * 4
    # The whole prefix at the history's start, half of it, broken, and in the middle.
    histories = [(8, 9), (9,), (8, 1, 9), (1, 1, 8, 9)]
    assert tokens((8, 9, 40), histories) == [41, 40, 40, 41]
    assert tokens((9, 40), [(9,), (9, 1), (1, 9), (0,)]) == [41, 40, 41, 40]


def test_stale_history_is_not_read(bench, make_case):
    logits = np.zeros((4, 203), np.float32)
    logits[:, 40], logits[:, 41] = 5.0, 4.0
    params = SamplingParams(presence_penalty=2.0, bad_words=["x"], **GREEDY)
    # Positions from the asked length on are what an earlier request would have left there.
    bench.put(0, make_case(params, (3,) + (40,) * 499, 1, bad_word_ids=[(40, 40, 40)]))
    for position, token in ((500, 41), (2, 41), (1, 40)):
        tokens = bench.run_rows(logits, [0] * 4, [position] * 4, [True] * 4)
        assert tokens.tolist() == [token] * 4


def test_long_histories_are_counted_over_all_blocks(bench, make_case):
    logits = np.zeros((4, 203), np.float32)
    logits[:, 40], logits[:, 41] = 5.0, 4.0
    params = SamplingParams(presence_penalty=2.0, **GREEDY)
    for place in (1, 255, 256, 511, 512, 599):
        history = [3] * 600
        history[place] = 40
        cases = [make_case(params, history[:n], 1) for n in (place + 1, place, 600, place + 1)]
        if place == 1:
            cases[1] = make_case(params, [3], 1)
        assert bench.run(logits, cases).tolist() == [41, 40, 41, 41]


def test_contradicting_masks_lift_the_ban_and_keep_the_allowed_ids(bench, make_case, logits):
    params = SamplingParams(allowed_token_ids=[2, 50], min_tokens=5, stop_token_ids=[50])
    cases = [make_case(params, seed=seed) for seed in range(4)]
    tokens = bench.run(logits, cases)
    assert set(tokens.tolist()) <= {2, 50}
    bench.check(logits, cases)


def test_a_failed_row_leaves_its_neighbours_alone(bench, make_case, logits):
    for params in (
        SamplingParams(**GREEDY),
        SamplingParams(top_k=5, top_p=0.9, logprobs=2, repetition_penalty=1.2),
        SamplingParams(allowed_token_ids=[1, 2, 3]),
    ):
        cases = [make_case(params, seed=seed) for seed in range(4)]
        healthy = bench.run(logits, cases)
        for place in (0, 17, 127, 128, 202):
            for poison in (np.nan, np.inf):
                broken = logits.copy()
                broken[2, place] = poison
                tokens = bench.run(broken, cases)
                assert tokens[2] == -1
                np.testing.assert_array_equal(np.delete(tokens, 2), np.delete(healthy, 2))
    broken = np.full_like(logits, -np.inf)
    assert bench.run(broken, cases).tolist() == [-1] * 4


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0.7),
        SamplingParams(top_p=0.6, temperature=1.5),
        SamplingParams(top_k=7, min_p=0.05),
        SamplingParams(presence_penalty=1.0, frequency_penalty=0.5, repetition_penalty=1.3),
    ],
)
def test_the_draw_follows_the_distribution(bench, make_case, params):
    # Prompt tokens only: positions beyond the history would count stale outputs.
    logits = np.full(203, -np.inf, np.float32)
    logits[::7] = np.random.default_rng(1).normal(0, 1.5, 29)
    history = (5, 9, 9) + (14,) * 597
    case = make_case(params, history[:3], 3, seed=77)
    if params.presence_penalty == 0:
        expected = bench.expect(logits, case).probabilities
        found = probabilities(bench, logits, case)
        kept = expected > 0
        assert found[~kept].sum() == 0
        chi2 = 4096 * np.sum((found[kept] - expected[kept]) ** 2 / expected[kept])
        assert chi2 < kept.sum() + 5 * np.sqrt(2 * kept.sum())
    else:
        seeds = range(1024)
        expected = bench.expect(logits, make_case(params)).probabilities
        counts = np.zeros(203)
        for start in seeds[::4]:
            cases = [make_case(params, seed=start + i) for i in range(4)]
            np.add.at(counts, bench.run(np.stack([logits] * 4), cases), 1)
        kept = expected > 0
        chi2 = np.sum((counts - 1024 * expected)[kept] ** 2 / (1024 * expected[kept]))
        assert counts[~kept].sum() == 0
        assert chi2 < kept.sum() + 5 * np.sqrt(2 * kept.sum())


token_ids = st.integers(0, 202)
any_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 4.0, 1e-30, 1e30]),
    top_k=st.sampled_from([0, 1, 2, 17, 202, 203, 5000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-9]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.6, 1.7]),
    presence_penalty=st.sampled_from([0.0, -2.0, 1.1]),
    frequency_penalty=st.sampled_from([0.0, -0.4, 2.0]),
    logit_bias=st.none() | st.dictionaries(token_ids, st.floats(-100, 100, width=16), max_size=4),
    allowed_token_ids=st.none() | st.lists(token_ids, min_size=1, max_size=40),
    min_tokens=st.sampled_from([0, 2, 3, 9]),
    stop_token_ids=st.none() | st.lists(token_ids, max_size=2),
    logprobs=st.none() | st.integers(0, 5),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_mix_equals_the_reference(bench, make_case, data):
    seed = data.draw(st.integers(0, 2**32))
    logits = np.random.default_rng(seed).normal(0, 3, (4, 203)).astype(np.float32)
    cases = []
    for _ in range(4):
        history = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=12))
        cases.append(
            make_case(
                data.draw(any_params),
                history,
                data.draw(st.integers(1, len(history))),
                data.draw(st.integers(0, 2**64 - 1)),
                data.draw(
                    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=3), max_size=3)
                ),
            )
        )
    bench.check(logits, cases)
    assert len(bench.traces) == 1, "a mix of parameters compiled the sampler again"

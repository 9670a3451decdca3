"""The whole path on a tiny model: equal to transformers, alone and in company."""

from __future__ import annotations

import numpy as np
import pytest

from fastgen_jax import LLM, FinishReason, SamplingParams
from tests.e2e.conftest import TINY_MODEL, ReferencePrompt

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
# transformers sums the same float32 products in another order.
LOGPROB_TOLERANCE = 1e-4


def tokens_of(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    """The output tokens of each prompt."""
    return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params)]


def test_greedy_tokens_equal_transformers(
    tiny_llm: LLM, tiny_prompts: list[ReferencePrompt]
) -> None:
    ids = [prompt.prompt_token_ids for prompt in tiny_prompts]
    expected = [prompt.token_ids for prompt in tiny_prompts]
    assert [tokens_of(tiny_llm, [one], GREEDY)[0] for one in ids] == expected
    assert tokens_of(tiny_llm, ids, GREEDY) == expected


def test_first_token_logprobs_equal_transformers(
    tiny_llm: LLM, tiny_prompts: list[ReferencePrompt]
) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=20)
    outputs = tiny_llm.generate([p.prompt_token_ids for p in tiny_prompts], params)
    for output, prompt in zip(outputs, tiny_prompts, strict=True):
        assert output.outputs[0].logprobs is not None
        entries = output.outputs[0].logprobs[0]
        expected = np.array(prompt.first_token_logprobs)
        assert len(entries) == 20
        assert set(entries) == set(np.argsort(-expected)[:20].tolist())
        for token_id, entry in entries.items():
            assert entry.logprob == pytest.approx(expected[token_id], abs=LOGPROB_TOLERANCE)
            assert entry.rank == 1 + (expected > expected[token_id]).sum()


def test_prompt_logprobs_do_not_depend_on_the_cache_or_the_chunks(
    tiny_llm: LLM, tiny_prompts: list[ReferencePrompt]
) -> None:
    """Position i of a long prompt gives what the prompt cut at i gives for its first token."""
    ids = tiny_prompts[2].prompt_token_ids
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=3)
    for _ in range(2):  # the second time, the prompt is in the prefix cache
        found = tiny_llm.generate(ids, params)[0].prompt_logprobs
        assert found is not None
        assert len(found) == len(ids)
        assert found[0] is None
        for position in (1, 15, 16, 17, 39):
            first = SamplingParams(temperature=0, max_tokens=1, logprobs=20)
            cut = tiny_llm.generate(ids[:position], first)[0].outputs[0].logprobs
            entry = found[position]
            assert cut is not None
            assert entry is not None
            assert len(entry) in (3, 4)
            for token_id in set(entry) & set(cut[0]):
                assert entry[token_id].logprob == pytest.approx(
                    cut[0][token_id].logprob, abs=LOGPROB_TOLERANCE
                )
                assert entry[token_id].rank == cut[0][token_id].rank


def test_seeded_tokens_do_not_depend_on_company(
    tiny_llm: LLM, tiny_prompts: list[ReferencePrompt]
) -> None:
    ids = [prompt.prompt_token_ids for prompt in tiny_prompts]
    mine = SamplingParams(temperature=1.0, seed=7, max_tokens=24, ignore_eos=True)
    other = SamplingParams(temperature=1.5, top_p=0.9, seed=8, max_tokens=30, ignore_eos=True)
    alone = tokens_of(tiny_llm, [ids[1]], mine)[0]
    outputs = tiny_llm.generate([ids[3], ids[1], ids[2]], [other, mine, other])
    assert list(outputs[1].outputs[0].token_ids) == alone
    assert tokens_of(tiny_llm, [ids[1]], other)[0][:24] != alone


def test_every_engine_size_gives_the_same_tokens(
    tiny_prompts: list[ReferencePrompt], tiny_settings: dict[str, object]
) -> None:
    """Chunked at every size, page sizes that divide nothing, prefix cache off, tiny pool."""
    ids = [prompt.prompt_token_ids for prompt in tiny_prompts]
    expected = [prompt.token_ids for prompt in tiny_prompts]
    variants: list[dict[str, object]] = [
        {"step_shapes": ((1, 1), (3, 2)), "block_size": 5, "num_kv_blocks": 100},
        {"step_shapes": ((64, 4),), "block_size": 16, "enable_prefix_caching": False},
    ]
    for variant in variants:
        with LLM(TINY_MODEL, **{**tiny_settings, **variant}) as llm:
            assert tokens_of(llm, ids, GREEDY) == expected, variant


def test_preemption_loses_nothing(tiny_llm: LLM, tiny_settings: dict[str, object]) -> None:
    """A pool that three requests outgrow together: tokens and log-probabilities stay the same."""
    prompts = [[7] * 9, [8] * 9, [9] * 9]
    params = [
        SamplingParams(temperature=0, max_tokens=100, ignore_eos=True, logprobs=2),
        SamplingParams(temperature=1.0, seed=1, max_tokens=100, ignore_eos=True, logprobs=0),
        SamplingParams(
            temperature=0.8, seed=2, frequency_penalty=0.5, max_tokens=100, ignore_eos=True
        ),
    ]
    expected = [output.outputs[0] for output in tiny_llm.generate(prompts, params)]
    settings = {**tiny_settings, "step_shapes": ((4, 4), (7, 4)), "num_kv_blocks": 18}
    settings["max_model_len"] = 128
    with LLM(TINY_MODEL, **settings) as llm:
        found = [output.outputs[0] for output in llm.generate(prompts, params)]
        assert llm.metrics.scheduler.num_preemptions > 0
    for before, after in zip(expected, found, strict=True):
        assert after.token_ids == before.token_ids
        assert after.text == before.text
        assert (after.logprobs is None) == (before.logprobs is None)
        pairs = zip(after.logprobs or (), before.logprobs or (), strict=True)
        for token_id, (mine, other) in zip(after.token_ids, pairs, strict=False):
            assert mine[token_id].logprob == pytest.approx(
                other[token_id].logprob, abs=LOGPROB_TOLERANCE
            )
    assert sum(output.metrics.num_preemptions for output in found) > 0


def test_shared_prefixes_give_the_same_tokens_and_are_computed_once(
    tiny_llm: LLM, tiny_prompts: list[ReferencePrompt], tiny_settings: dict[str, object]
) -> None:
    base = tiny_prompts[3].prompt_token_ids
    prompts = [[*base, 1], [*base, 2], [*base, 1]]
    before = tiny_llm.metrics
    together = tokens_of(tiny_llm, prompts, GREEDY)
    after = tiny_llm.metrics
    assert together[0] == together[2]
    hits = after.scheduler.num_hit_tokens - before.scheduler.num_hit_tokens
    assert hits >= 2 * 96, "the second and third prompt share the first one's blocks"
    with LLM(TINY_MODEL, **{**tiny_settings, "enable_prefix_caching": False}) as plain:
        assert tokens_of(plain, prompts, GREEDY) == together
        assert plain.metrics.scheduler.num_hit_tokens == 0


@pytest.mark.slow
def test_dense_forward_equals_transformers(tiny_prompts: list[ReferencePrompt]) -> None:
    """The flax module: the plain forward without cache or chunks, which also unrolls the layers."""
    import jax
    import jax.numpy as jnp

    from fastgen_jax.models.module import DecoderModule
    from fastgen_jax.models.weights.checkpoint import open_checkpoint

    with open_checkpoint(TINY_MODEL) as checkpoint:
        weights = {
            name: jnp.asarray(values) for name, values in checkpoint.tensors(np.dtype("float32"))
        }
        model = DecoderModule(checkpoint.config, weights)
    for prompt in tiny_prompts:
        logits = model(jnp.asarray(prompt.prompt_token_ids, jnp.int32))
        np.testing.assert_allclose(
            np.asarray(jax.nn.log_softmax(logits[-1])),
            prompt.first_token_logprobs,
            atol=LOGPROB_TOLERANCE,
        )


def test_stop_token_and_length(tiny_llm: LLM, tiny_prompts: list[ReferencePrompt]) -> None:
    prompt = tiny_prompts[0]
    stop = prompt.token_ids[3]
    first = prompt.token_ids.index(stop)
    params = SamplingParams(temperature=0, max_tokens=24, stop_token_ids=[stop], ignore_eos=True)
    output = tiny_llm.generate(prompt.prompt_token_ids, params)[0].outputs[0]
    assert list(output.token_ids) == prompt.token_ids[: first + 1]
    assert (output.finish_reason, output.stop_reason) == (FinishReason.STOP, stop)
    longest = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    output = tiny_llm.generate(prompt.prompt_token_ids, longest)[0].outputs[0]
    assert len(output.token_ids) == 256 - len(prompt.prompt_token_ids)
    assert output.finish_reason is FinishReason.LENGTH


def test_several_completions_of_one_prompt(
    tiny_llm: LLM, tiny_prompts: list[ReferencePrompt]
) -> None:
    params = SamplingParams(n=3, temperature=1.0, seed=3, max_tokens=12, ignore_eos=True)
    output = tiny_llm.generate(tiny_prompts[1].prompt_token_ids, params)[0]
    again = tiny_llm.generate(tiny_prompts[1].prompt_token_ids, params)[0]
    assert [c.index for c in output.outputs] == [0, 1, 2]
    assert len({c.token_ids for c in output.outputs}) == 3
    assert [c.token_ids for c in output.outputs] == [c.token_ids for c in again.outputs]


def test_streams_may_be_left_early_and_interleaved(
    tiny_llm: LLM, tiny_prompts: list[ReferencePrompt]
) -> None:
    first = tiny_llm.stream(tiny_prompts[0].prompt_token_ids, GREEDY)
    second = tiny_llm.stream(tiny_prompts[1].prompt_token_ids, GREEDY)
    abandoned = tiny_llm.stream(tiny_prompts[2].prompt_token_ids, GREEDY)
    next(abandoned)
    abandoned.close()  # pyright: ignore[reportAttributeAccessIssue]  # a generator
    tokens: list[list[int]] = [[], []]
    for pair in zip(first, second, strict=True):
        for mine, delta in zip(tokens, pair, strict=True):
            mine.extend(delta.token_ids)
    assert tokens == [tiny_prompts[0].token_ids, tiny_prompts[1].token_ids]
    assert tiny_llm.metrics.scheduler.num_running == 0

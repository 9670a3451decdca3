"""Many callers of one engine in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from fastgen_jax import LLM, AsyncLLM, FinishReason, SamplingParams
from fastgen_jax.errors import ConfigError, EngineClosedError, InvalidRequestError
from tests.e2e.conftest import TINY_MODEL, ReferencePrompt

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
Test = Callable[[AsyncLLM], Coroutine[Any, Any, None]]


@pytest.fixture
def with_llm(tiny_settings: dict[str, object]) -> Callable[[Test], None]:
    """Runs a coroutine function with an engine of its own; fails where that doesn't end."""

    async def main(test: Test) -> None:
        llm = await asyncio.to_thread(lambda: AsyncLLM(TINY_MODEL, **tiny_settings))
        async with llm, asyncio.timeout(60):
            await test(llm)

    return lambda test: asyncio.run(main(test))


def test_callers_at_once_get_the_tokens_of_transformers(
    with_llm: Callable[[Test], None], tiny_prompts: list[ReferencePrompt]
) -> None:
    async def test(llm: AsyncLLM) -> None:
        outputs = await asyncio.gather(
            *(llm.generate(prompt.prompt_token_ids, GREEDY) for prompt in tiny_prompts * 3)
        )
        for output, prompt in zip(outputs, tiny_prompts * 3, strict=True):
            assert list(output.outputs[0].token_ids) == prompt.token_ids
            assert output.prompt_token_ids == tuple(prompt.prompt_token_ids)
        assert (await llm.metrics()).scheduler.num_running == 0

    with_llm(test)


def test_the_policy_changes_when_nobody_is_served(
    with_llm: Callable[[Test], None], tiny_prompts: list[ReferencePrompt]
) -> None:
    async def test(llm: AsyncLLM) -> None:
        prompt = tiny_prompts[2]
        stream = llm.stream([1, 2, 3], ENDLESS)
        async with aclosing(stream):
            await anext(stream)
            with pytest.raises(ConfigError, match="unfinished"):
                await llm.use_policy("shortest_remaining")
        await until_idle(llm)
        await llm.use_policy("shortest_remaining", token_budget=9)
        output = await llm.generate(prompt.prompt_token_ids, GREEDY)
        assert list(output.outputs[0].token_ids) == prompt.token_ids
        assert llm.llm.engine.scheduler.config.token_budget == 9

    with_llm(test)


def test_a_stream_tells_every_token_once_and_then_why_it_ended(
    with_llm: Callable[[Test], None], tiny_prompts: list[ReferencePrompt]
) -> None:
    async def test(llm: AsyncLLM) -> None:
        prompt = tiny_prompts[1]
        other = asyncio.create_task(llm.generate(tiny_prompts[3].prompt_token_ids, GREEDY))
        deltas = [delta async for delta in llm.stream(prompt.prompt_token_ids, GREEDY)]
        assert [token for delta in deltas for token in delta.token_ids] == prompt.token_ids
        assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish_reason is FinishReason.LENGTH
        assert len(deltas) > 5
        assert list((await other).outputs[0].token_ids) == tiny_prompts[3].token_ids

    with_llm(test)


def test_several_completions_of_one_prompt_end_each_by_itself(
    with_llm: Callable[[Test], None],
) -> None:
    async def test(llm: AsyncLLM) -> None:
        params = SamplingParams(n=3, max_tokens=5, seed=1, ignore_eos=True)
        deltas = [delta async for delta in llm.stream([1, 2, 3], params)]
        ends = [delta.index for delta in deltas if delta.finish_reason is not None]
        assert sorted(ends) == [0, 1, 2]
        output = await llm.generate([1, 2, 3], params)
        for completion in output.outputs:
            told = [d.token_ids for d in deltas if d.index == completion.index]
            assert tuple(token for ids in told for token in ids) == completion.token_ids

    with_llm(test)


def test_a_request_that_cannot_be_served_is_refused_alone(
    with_llm: Callable[[Test], None], tiny_prompts: list[ReferencePrompt]
) -> None:
    async def test(llm: AsyncLLM) -> None:
        good = asyncio.create_task(llm.generate(tiny_prompts[0].prompt_token_ids, GREEDY))
        with pytest.raises(InvalidRequestError, match="is empty"):
            await llm.generate([], GREEDY)
        with pytest.raises(InvalidRequestError, match="neither text nor token ids"):
            async for _ in llm.stream(7, GREEDY):  # type: ignore[arg-type]
                pass
        assert list((await good).outputs[0].token_ids) == tiny_prompts[0].token_ids

    with_llm(test)


async def until_idle(llm: AsyncLLM) -> None:
    """Until nothing is left in the engine; the test's timeout ends a wait in vain."""
    while (found := (await llm.metrics()).scheduler).num_running or found.num_waiting:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("way", ["cancel", "close the stream"])
def test_who_goes_away_leaves_nothing_running(way: str, with_llm: Callable[[Test], None]) -> None:
    async def test(llm: AsyncLLM) -> None:
        if way == "cancel":
            task = asyncio.create_task(llm.generate([1, 2, 3], ENDLESS))
            while not (await llm.metrics()).scheduler.num_running:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with aclosing(llm.stream([1, 2, 3], ENDLESS)) as deltas:
                async for _ in deltas:
                    break
        await until_idle(llm)
        assert (await llm.metrics()).num_output_tokens < 200

    with_llm(test)


def test_cancelling_before_it_is_queued_leaves_nothing_running(
    with_llm: Callable[[Test], None],
) -> None:
    async def test(llm: AsyncLLM) -> None:
        for _ in range(20):
            task = asyncio.create_task(llm.generate([1, 2, 3], ENDLESS))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await until_idle(llm)

    with_llm(test)


def test_closing_ends_who_still_waits(tiny_settings: dict[str, object]) -> None:
    async def main() -> None:
        llm = AsyncLLM(TINY_MODEL, **tiny_settings)
        task = asyncio.create_task(llm.generate([1, 2, 3], ENDLESS))
        while not (await llm.metrics()).scheduler.num_running:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(llm.close)
        with pytest.raises(EngineClosedError, match="was closed"):
            await task
        with pytest.raises(EngineClosedError, match="was closed"):
            await llm.generate([1], GREEDY)
        llm.close()

    asyncio.run(main())


def test_a_failing_step_is_told_to_all(
    with_llm: Callable[[Test], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(llm: AsyncLLM) -> None:
        tasks = [asyncio.create_task(llm.generate([1, 2, 3 + i], ENDLESS)) for i in range(3)]
        while (await llm.metrics()).scheduler.num_running < 3:
            await asyncio.sleep(0.001)

        def fail(*_: object) -> None:
            raise RuntimeError("the device is on fire")

        monkeypatch.setattr(llm.llm.engine._executor, "launch", fail)
        for task in tasks:
            with pytest.raises(EngineClosedError, match="on fire"):
                await task

    with_llm(test)


def test_the_same_tokens_as_without_a_thread(
    with_llm: Callable[[Test], None], tiny_settings: dict[str, object]
) -> None:
    """Drawn ones too, with a seed."""
    params = SamplingParams(seed=11, max_tokens=20, ignore_eos=True)
    with LLM(TINY_MODEL, **tiny_settings) as llm:
        expected = llm.generate([[5, 6, 7], [8, 9]], params)

    async def test(llm: AsyncLLM) -> None:
        outputs = await asyncio.gather(
            llm.generate([5, 6, 7], params), llm.generate([8, 9], params)
        )
        for output, same in zip(outputs, expected, strict=True):
            assert output.outputs[0].token_ids == same.outputs[0].token_ids

    with_llm(test)

"""An LLM that keeps its steps, and one that keeps none."""

from __future__ import annotations

import asyncio

import jax
import pytest

from fastgen_jax import LLM, AsyncLLM, SamplingParams, StepHistory
from fastgen_jax.errors import ConfigError
from tests.e2e.conftest import TINY_MODEL

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def test_an_output_can_be_explained_and_drawn(tiny_settings: dict[str, object]) -> None:
    with LLM(TINY_MODEL, **tiny_settings, step_history=50) as llm:
        assert isinstance(llm.history, StepHistory)
        assert llm.history.max_steps == 50
        output = llm.generate(list(range(1, 40)), GREEDY)[0]
        sentences = llm.explain(output.request_id).sentences
        assert sentences[0].startswith(f"Request {output.request_id} arrived before step 0 with 39")
        assert "in 3 chunks of 16 tokens, the last of 7, in steps 0 to 2." in sentences[1]
        assert sentences[-1].endswith("with 4 output tokens: it was allowed no more.")
        assert "request 0: decoded" in llm.history.timeline().svg()
        assert "Memory plan" in llm._repr_html_()
        assert "first token after" in output._repr_html_()


def test_nothing_compiles_after_the_start_and_that_is_counted(
    tiny_settings: dict[str, object],
) -> None:
    with LLM(TINY_MODEL, **tiny_settings) as llm:
        llm.generate(list(range(1, 40)), GREEDY)
        metrics = llm.metrics
        assert metrics.num_compilations_since_start == 0
        assert metrics.num_programs == len(llm.compile_report.records) == 4
        jax.jit(lambda x: x * 3 + 1).lower(1.5).compile()
        assert llm.metrics.num_compilations_since_start == 1
        assert llm.metrics.as_dict()["num_programs"] == 4


def test_without_a_history_the_setting_is_named(tiny_settings: dict[str, object]) -> None:
    with LLM(TINY_MODEL, **tiny_settings, step_history=0) as llm:
        llm.generate([1, 2], GREEDY)
        for ask in (lambda: llm.history, lambda: llm.explain("0")):
            with pytest.raises(ConfigError, match=r"step_history=0.*step_history=1000"):
                ask()


def test_many_callers_may_ask_while_others_run(tiny_settings: dict[str, object]) -> None:
    async def main() -> None:
        async with AsyncLLM(TINY_MODEL, **tiny_settings) as llm:
            first = await llm.generate([1, 2, 3], GREEDY)
            others = [
                asyncio.create_task(llm.generate([n, n + 1, n + 2], GREEDY)) for n in range(1, 9)
            ]
            told = await asyncio.to_thread(llm.explain, first.request_id)
            await asyncio.gather(*others)
            assert told.sentences[-1].endswith("it was allowed no more.")
            assert len(llm.history.request_rows()["request_id"]) == 9
            assert (await llm.metrics()).num_programs == 4

    asyncio.run(main())

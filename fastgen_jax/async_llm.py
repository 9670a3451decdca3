"""The asynchronous front door: ``AsyncLLM(model).stream(prompt)`` in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Self

from fastgen_jax.completion import Completion
from fastgen_jax.config import EngineConfig
from fastgen_jax.engine_thread import EngineThread
from fastgen_jax.errors import EngineClosedError
from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.llm import LLM
from fastgen_jax.metrics import EngineMetrics
from fastgen_jax.observe.explain import Explanation
from fastgen_jax.observe.observer import Observer
from fastgen_jax.observe.step_history import StepHistory
from fastgen_jax.outputs import Delta, RequestOutput
from fastgen_jax.prompt_batch import Message, Prompt, request_output
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.scheduling.policy import Policy


class AsyncLLM:
    """A language model for many callers at once, in one event loop or in several.

    One thread steps the engine; requests join and leave between its steps. ``model`` and the
    keywords are those of ``LLM``. Building takes seconds and blocks: in a running event loop, use
    ``await asyncio.to_thread(AsyncLLM, model)``.

    Raises:
        FastGenError: the model or a setting can't be used; names it, its value and the remedy.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        config: EngineConfig | None = None,
        observers: Sequence[Observer] = (),
        **settings: object,
    ) -> None:
        """``observers`` are told of every plan, result and end, on the engine's thread."""
        self._llm = LLM(model, config=config, observers=observers, **settings)
        self._thread = EngineThread(self._llm.engine)

    @property
    def llm(self) -> LLM:
        """The model, its tokenizer and reports; not to generate with."""
        return self._llm

    async def metrics(self) -> EngineMetrics:
        """Counts since the engine started."""
        return await asyncio.wrap_future(self._thread.call(lambda: self._llm.metrics))

    @property
    def history(self) -> StepHistory:
        """The last steps and what they decided, while others are made; as ``LLM.history``."""
        return self._llm.history

    def explain(self, request_id: str) -> Explanation:
        """In sentences, what became of a request and why; as ``LLM.explain``."""
        return self._llm.explain(request_id)

    async def use_policy(self, policy: str | Policy, *, token_budget: int | None = None) -> None:
        """As ``LLM.use_policy``; no request may be unfinished."""
        engine = self._llm.engine
        change = self._thread.call(lambda: engine.use_policy(policy, token_budget=token_budget))
        await asyncio.wrap_future(change)

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        targets: LatencyTargets | None = None,
    ) -> RequestOutput:
        """The prompt's completions, when they have ended; cancelling aborts them.

        Raises:
            InvalidRequestError: the prompt or its parameters can't be served.
            EngineClosedError: the engine has failed or was closed.
        """
        request = await self._submit(prompt, sampling_params, priority, cache_salt, targets)
        async with request:
            async for _ in request.deltas():
                pass
        return request_output(prompt, request.completions)

    async def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        targets: LatencyTargets | None = None,
    ) -> AsyncIterator[Delta]:
        """What each step adds to the prompt's completions.

        Leaving the loop early aborts them, once the generator is closed: ``contextlib.aclosing``
        does so at once.

        Raises:
            InvalidRequestError: the prompt or its parameters can't be served.
            EngineClosedError: the engine has failed or was closed.
        """
        submitting = self._submit(prompt, sampling_params, priority, cache_salt, targets)
        async with await submitting as request:
            async for delta in request.deltas():
                yield delta

    async def chat(
        self, messages: Sequence[Message], sampling_params: SamplingParams | None = None
    ) -> RequestOutput:
        """The model's answer to a conversation; raises as ``generate`` and ``LLM.chat``."""
        return await self.generate(self._llm.chat_prompt(messages), sampling_params)

    def close(self) -> None:
        """End all requests and free the device memory; closing twice is harmless."""
        self._thread.close()
        self._llm.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    async def _submit(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None,
        priority: int,
        cache_salt: str | None,
        targets: LatencyTargets | None,
    ) -> _Running:
        token_ids = self._llm.token_ids(prompt)
        request = _Running(self._thread, self._llm)

        def submit() -> list[Completion]:
            completions = self._llm.engine.submit(
                token_ids,
                sampling_params or SamplingParams(),
                priority=priority,
                cache_salt=cache_salt,
                targets=targets,
            )
            for completion in completions:
                self._thread.listen(completion, request.hear)
            return completions

        submitting = self._thread.call(submit)
        try:
            request.completions = await asyncio.wrap_future(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(request.abort_submitted)
            raise
        return request


class _Running:
    """A request's completions on their way from the engine's thread to an event loop."""

    def __init__(self, thread: EngineThread, llm: LLM) -> None:
        self.completions: list[Completion] = []
        self._thread = thread
        self._llm = llm
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[Delta | BaseException] = asyncio.Queue()

    def hear(self, news: Completion | BaseException) -> None:
        """A listener; on the engine's thread."""
        found = news if isinstance(news, BaseException) else news.take_delta()
        self._loop.call_soon_threadsafe(self._news.put_nowait, found)

    async def deltas(self) -> AsyncIterator[Delta]:
        """What was heard, until all completions have ended."""
        num_open = len(self.completions)
        while num_open:
            news = await self._news.get()
            if isinstance(news, BaseException):
                raise news
            num_open -= news.finish_reason is not None
            if news.token_ids or news.text or news.finish_reason is not None:
                yield news

    def abort_submitted(self, submitted: Future[list[Completion]]) -> None:
        """End what was queued although its caller has gone."""
        if not submitted.cancelled() and submitted.exception() is None:
            self._abort(submitted.result())

    def _abort(self, completions: list[Completion]) -> None:
        def abort() -> None:
            for completion in completions:
                self._thread.ignore(completion)
                self._llm.engine.abort(completion.request)

        with suppress(EngineClosedError):  # which has ended them already
            self._thread.call(abort)

    async def __aenter__(self) -> _Running:
        return self

    async def __aexit__(self, *_: object) -> None:
        open_ones = [c for c in self.completions if not c.request.is_finished]
        if open_ones:
            self._abort(open_ones)

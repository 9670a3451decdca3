"""The front door: a model in this process, prompts in, outputs out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
from tqdm import tqdm

from fastgen_jax.completion import Completion
from fastgen_jax.config import EngineConfig
from fastgen_jax.engine import Engine
from fastgen_jax.errors import ConfigError, FastGenError, InvalidRequestError, TokenizerError
from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.loaded_model import StartupReport, lend_devices, load_model
from fastgen_jax.markup import Markup, element, joined
from fastgen_jax.metrics import EngineMetrics
from fastgen_jax.models.config import ModelConfig
from fastgen_jax.observe.explain import Explanation
from fastgen_jax.observe.observer import Observer
from fastgen_jax.observe.step_history import StepHistory
from fastgen_jax.outputs import Delta, RequestOutput
from fastgen_jax.prompt_batch import (
    Message,
    Prompt,
    as_batch,
    as_conversations,
    per_prompt,
    refused_output,
    request_output,
)
from fastgen_jax.runtime.compile import CompileReport
from fastgen_jax.sampling_params import SamplingParams
from fastgen_jax.scheduling.policy import Policy
from fastgen_jax.text import ChatTemplate, Tokenizer

Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A language model served in this process; close it, or use it in a ``with`` block.

    ``model`` is a built-in name such as "smollm2-135m-instruct", a directory, a .gguf file or a
    Hub id; further keywords are the fields of EngineConfig. Building compiles every step and
    takes all memory; afterwards nothing compiles and nothing grows.

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
        """``observers`` are told of every plan, result and end while the engine runs."""
        self._config = _engine_config(config, settings)
        num_steps = self._config.step_history
        self._history = StepHistory(num_steps) if num_steps else None
        kept = () if self._history is None else (self._history,)
        self._loaded = load_model(model, self._config, observers=(*kept, *observers))
        self._engine = self._loaded.engine

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None where it has none and takes token ids alone."""
        return self._loaded.tokenizer

    @property
    def engine(self) -> Engine:
        """The loop beneath, for whoever steps it; not beside ``generate``."""
        return self._engine

    @property
    def model_config(self) -> ModelConfig:
        """The model's shape."""
        return self._loaded.model

    @property
    def startup(self) -> StartupReport:
        """What starting took, and the memory plan."""
        return self._loaded.startup

    @property
    def compile_report(self) -> CompileReport:
        """What compiling took; waits for what is still being compiled in the background."""
        return self._loaded.compile_report()

    @property
    def metrics(self) -> EngineMetrics:
        """Counts since the engine started."""
        return replace(
            self._engine.metrics(),
            num_programs=self._loaded.num_programs,
            num_compilations_since_start=self._loaded.num_compilations_since_start,
        )

    @property
    def history(self) -> StepHistory:
        """The last steps and what they decided, as tables and pictures; from any thread.

        Raises:
            ConfigError: EngineConfig.step_history is 0.
        """
        if self._history is None:
            raise ConfigError(
                "no steps are kept, so none can be explained",
                field="step_history",
                value=0,
                remedy="build the LLM with step_history=1000, its default",
            )
        return self._history

    def explain(self, request_id: str) -> Explanation:
        """In sentences, what became of a request and why; from any thread.

        ``request_id`` is ``RequestOutput.request_id``; "3" stands for its completions "3-0" and
        "3-1" too.

        Raises:
            InvalidRequestError: no such request ran in the steps that are kept.
            ConfigError: EngineConfig.step_history is 0.
        """
        return self.history.explain(request_id)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        priority: int | Sequence[int] = 0,
        cache_salt: str | None = None,
        targets: LatencyTargets | None = None,
        use_tqdm: bool | None = None,
        return_errors: bool = False,
    ) -> list[RequestOutput]:
        """An output per prompt, in the order given.

        Args:
            prompts: texts or lists of token ids; a single one counts as a list of one.
            sampling_params: one for all, or one per prompt; None is SamplingParams().
            priority: lower runs earlier under the "priority" policy; one for all or per prompt.
            cache_salt: share cached prefixes only with calls of the same salt.
            targets: seconds that tokens may take; the "deadlines" policy aims at them.
            use_tqdm: show a progress bar; None follows EngineConfig.show_progress.
            return_errors: give an output with finish_reason ERROR for a prompt that can't be
                served, and serve the others; otherwise the first such prompt raises before
                anything is queued.

        Raises:
            InvalidRequestError: a prompt or its parameters can't be served; names its index.
        """
        batch = as_batch(prompts)
        params = per_prompt(sampling_params, len(batch), "sampling_params", SamplingParams())
        priorities = per_prompt(priority, len(batch), "priority", 0)
        ids, errors = self._prepare(batch, params, return_errors)
        groups: list[list[Completion]] = []
        for i, prompt_ids in enumerate(ids):
            if errors[i] is not None:
                groups.append([])
                continue
            groups.append(
                self._engine.submit(
                    prompt_ids,
                    params[i],
                    priority=priorities[i],
                    cache_salt=cache_salt,
                    targets=targets,
                )
            )
        self._run(groups, use_tqdm)
        return [
            request_output(batch[i], group) if group else refused_output(i, batch[i], errors[i])
            for i, group in enumerate(groups)
        ]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params = None,
        *,
        add_generation_prompt: bool = True,
        use_tqdm: bool | None = None,
    ) -> list[RequestOutput]:
        """The model's answers to one conversation or to several, in the order given.

        Raises:
            InvalidRequestError: a message is malformed; names its index and key.
            TokenizerError: the model has no chat template.
        """
        conversations = as_conversations(messages)
        prompts = [
            self.chat_prompt(conversation, add_generation_prompt=add_generation_prompt)
            for conversation in conversations
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def chat_prompt(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """A conversation as the model's chat template writes it, in token ids."""
        tokenizer = self._require_tokenizer("messages")
        text = self._chat_template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
        )
        # The template has written the special tokens already.
        return tokenizer.encode(text, add_special_tokens=False)

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        targets: LatencyTargets | None = None,
    ) -> Iterator[Delta]:
        """What each step adds to the prompt's completions; the request is queued at once.

        Leaving the iterator early aborts the request. Several streams may be open; whoever asks
        for its next delta moves all of them on.

        Raises:
            InvalidRequestError: the prompt or its parameters can't be served.
        """
        completions = self._engine.submit(
            self.token_ids(prompt),
            sampling_params or SamplingParams(),
            priority=priority,
            cache_salt=cache_salt,
            targets=targets,
        )
        return self._deltas(completions)

    def use_policy(self, policy: str | Policy, *, token_budget: int | None = None) -> None:
        """Schedule by another policy from now on, with what is compiled and an empty prefix cache.

        ``token_budget`` bounds a step's tokens; None: as many as the largest compiled step has.

        Raises:
            ConfigError: a request is unfinished, or no compiled step holds the budget.
        """
        self._engine.use_policy(policy, token_budget=token_budget)

    def close(self) -> None:
        """Abort what is unfinished and free every device buffer; closing twice is harmless."""
        self._loaded.close()

    def _repr_html_(self) -> str:
        model = self.model_config
        size = f"{model.num_layers} layers of width {model.hidden_size}"
        return joined([element("div", f"LLM: {size}"), Markup(self.startup._repr_html_())])

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @cached_property
    def _chat_template(self) -> ChatTemplate:
        return ChatTemplate(self._require_tokenizer("messages").chat_template)

    def _deltas(self, completions: list[Completion]) -> Iterator[Delta]:
        open_ones = list(completions)
        try:
            while open_ones:
                told = False
                for completion in list(open_ones):
                    delta = completion.take_delta()
                    if delta.finish_reason is not None:
                        open_ones.remove(completion)
                    if delta.token_ids or delta.text or delta.finish_reason is not None:
                        told = True
                        yield delta
                if open_ones and not told:
                    self._engine.step()
        finally:
            for completion in open_ones:
                self._engine.abort(completion.request)

    def _prepare(
        self, batch: list[Prompt], params: list[SamplingParams], return_errors: bool
    ) -> tuple[list[list[int]], list[FastGenError | None]]:
        """Every prompt's token ids, and what is wrong with it; nothing is queued yet."""
        ids: list[list[int]] = []
        errors: list[FastGenError | None] = []
        for i, (prompt, one) in enumerate(zip(batch, params, strict=True)):
            try:
                prompt_ids = self.token_ids(prompt)
                self._engine.check(prompt_ids, one)
            except (InvalidRequestError, TokenizerError) as error:
                if not return_errors:
                    error.add_note(f"prompt {i} of {len(batch)}; nothing was queued")
                    raise
                prompt_ids, found = [], error
            else:
                found = None
            ids.append(prompt_ids)
            errors.append(found)
        return ids, errors

    def token_ids(self, prompt: Prompt) -> list[int]:
        """A prompt's tokens, as the tokenizer makes them of a text.

        Raises:
            InvalidRequestError: it is neither text nor token ids.
            TokenizerError: it is a text, and the model has no tokenizer.
        """
        if isinstance(prompt, str):
            return self._require_tokenizer("prompt").encode(prompt)
        if not isinstance(prompt, Sequence | np.ndarray):
            raise InvalidRequestError(
                "is neither text nor token ids",
                field="prompt",
                value=prompt,
                remedy="give a string or a list of ints",
            )
        return list(prompt)

    def _require_tokenizer(self, field: str) -> Tokenizer:
        if self.tokenizer is None:
            raise TokenizerError(
                "the model has no tokenizer", field=field, remedy="give prompts as token ids"
            )
        return self.tokenizer

    def _run(self, groups: list[list[Completion]], use_tqdm: bool | None) -> None:
        num_open = {id(c): i for i, group in enumerate(groups) for c in group}
        left = [len(group) for group in groups]
        show = self._config.show_progress if use_tqdm is None else use_tqdm
        num_tokens = 0
        try:
            with tqdm(
                total=sum(map(bool, left)),
                desc="Prompts",
                disable=not show or (None if use_tqdm is None else False),
                dynamic_ncols=True,
            ) as bar:
                while num_open:
                    for completion in self._engine.step():
                        num_tokens += 1
                        if not completion.request.is_finished:
                            continue
                        group = num_open.pop(id(completion), None)
                        if group is None:  # another caller's stream
                            continue
                        left[group] -= 1
                        if left[group] == 0:
                            rate = num_tokens / max(bar.format_dict["elapsed"], 1e-9)
                            bar.set_postfix_str(f"{rate:.1f} output tokens/s", refresh=False)
                            bar.update()
        finally:
            # Interrupted: what this call queued must not go on behind the caller's back.
            for completion in (c for group in groups for c in group if id(c) in num_open):
                self._engine.abort(completion.request)


def follow(model: str | Path, *, config: EngineConfig | None = None, **settings: object) -> None:
    """Lend this host's devices to the LLM of host 0; returns when that is closed.

    To be called on every host but the first, after ``join_hosts``, with the model and settings of
    the LLM; once, as this host then leaves the others.

    Raises:
        ConfigError: this is host 0, or that has another model or other settings.
        HostLostError: host 0 is gone.
    """
    lend_devices(model, _engine_config(config, settings))


def _engine_config(config: EngineConfig | None, settings: Mapping[str, object]) -> EngineConfig:
    if config is not None and settings:
        raise InvalidRequestError(
            "can't be given beside config",
            field=", ".join(settings),
            remedy="put them into the EngineConfig",
        )
    return EngineConfig.from_dict(settings) if config is None else config

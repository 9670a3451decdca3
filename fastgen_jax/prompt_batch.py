"""One prompt or many, as a list; and a prompt's completions as its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

from fastgen_jax.completion import Completion
from fastgen_jax.errors import FastGenError, InvalidRequestError
from fastgen_jax.outputs import CompletionOutput, RequestMetrics, RequestOutput
from fastgen_jax.request import FinishReason

Prompt = str | Sequence[int]
Message = Mapping[str, object]


def as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """The prompts as a list; a text or a list of token ids counts as one."""
    if isinstance(prompts, str):
        return [prompts]
    is_one = len(prompts) > 0 and all(isinstance(item, Integral) for item in prompts)
    return [prompts] if is_one else list(prompts)  # pyright: ignore[reportReturnType]


def as_conversations(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
) -> list[Sequence[Message]]:
    """The conversations as a list; a list of messages counts as one."""
    if len(messages) > 0 and isinstance(messages[0], Mapping):
        return [messages]  # pyright: ignore[reportReturnType]
    return list(messages)  # pyright: ignore[reportReturnType]


def per_prompt[T](given: T | Sequence[T] | None, count: int, field: str, default: T) -> list[T]:
    """What was given for all prompts, or for each of them, as a list with an entry a prompt.

    Raises:
        InvalidRequestError: another number of entries; names the field.
    """
    if given is None:
        return [default] * count
    if not isinstance(given, Sequence):
        return [given] * count
    if len(given) != count:
        raise InvalidRequestError(
            f"has {len(given)} entries for {count} prompts",
            field=field,
            remedy="give one for all, or one per prompt",
        )
    return list(given)


def request_output(prompt: Prompt, group: Sequence[Completion]) -> RequestOutput:
    """What has become of a prompt's completions, one at least."""
    request = group[0].request
    logprobs = group[0].prompt_logprobs
    return RequestOutput(
        request_id=request.request_id.split("-")[0],
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=tuple(request.prompt_token_ids),
        prompt_logprobs=None if logprobs is None else tuple(logprobs),
        outputs=tuple(completion.output() for completion in group),
    )


def refused_output(number: int, prompt: Prompt, error: FastGenError | None) -> RequestOutput:
    """The output of a prompt that was never queued; ``number`` is its place among them."""
    return RequestOutput(
        request_id=f"refused-{number}",
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=(),
        prompt_logprobs=None,
        outputs=(_refused(error),),
    )


def _refused(error: FastGenError | None) -> CompletionOutput:
    return CompletionOutput(
        index=0,
        text="",
        token_ids=(),
        cumulative_logprob=None,
        logprobs=None,
        finish_reason=FinishReason.ERROR,
        stop_reason=None,
        error=str(error),
        metrics=RequestMetrics(
            arrival_time=0.0,
            first_scheduled_time=None,
            first_token_time=None,
            finished_time=None,
            num_cached_tokens=0,
            num_preemptions=0,
        ),
    )

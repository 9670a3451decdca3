"""DeepSpeed-MII's habit: ``pipe = pipeline(model); pipe(prompts, max_new_tokens=64)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastgen_jax.config import EngineConfig
from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.llm import LLM
from fastgen_jax.outputs import RequestOutput
from fastgen_jax.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer, with MII's field names; printing it prints the text."""

    generated_text: str
    prompt_length: int
    generated_length: int
    finish_reason: str

    def __str__(self) -> str:
        """The generated text."""
        return self.generated_text


class Pipeline:
    """An LLM called like a function; ``destroy`` or a ``with`` block frees it."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        do_sample: bool = True,
        return_full_text: bool = False,
        **sampling: object,
    ) -> list[Response]:
        """A Response per prompt, in the order given.

        Args:
            prompts: one text or several.
            max_new_tokens: most tokens to generate; None goes on to the model's length.
            min_new_tokens: EOS can't come earlier.
            do_sample: False takes the most likely token; unlike MII, sampling is neutral unless
                told otherwise (temperature 1, top_p 1).
            return_full_text: put the prompt in front of the answer.
            **sampling: further fields of SamplingParams.

        Raises:
            InvalidRequestError: an unknown name or a value out of range.
        """
        for name, own in (("max_tokens", "max_new_tokens"), ("min_tokens", "min_new_tokens")):
            if name in sampling:
                raise InvalidRequestError(
                    f"is called {own} here", field=name, value=sampling[name], remedy=f"use {own}"
                )
        if sampling.get("n", 1) != 1:
            raise InvalidRequestError(
                "a pipeline gives one response per prompt",
                field="n",
                value=sampling["n"],
                remedy="use LLM.generate",
            )
        if not do_sample:
            if "temperature" in sampling:
                raise InvalidRequestError(
                    "contradicts do_sample=False",
                    field="temperature",
                    value=sampling["temperature"],
                    remedy="drop one of the two",
                )
            sampling = {**sampling, "temperature": 0.0}
        params = SamplingParams.from_dict(
            {**sampling, "max_tokens": max_new_tokens, "min_tokens": min_new_tokens}
        )
        outputs = self.llm.generate(prompts, params)
        return [_response(output, return_full_text) for output in outputs]

    def destroy(self) -> None:
        """Free every device buffer."""
        self.llm.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.destroy()


def pipeline(model_name_or_path: str | Path, **settings: object) -> Pipeline:
    """A Pipeline over a new LLM; keywords are the fields of EngineConfig."""
    return Pipeline(LLM(model_name_or_path, config=EngineConfig.from_dict(settings)))


def _response(output: RequestOutput, return_full_text: bool) -> Response:
    completion = output.outputs[0]
    prefix = (output.prompt or "") if return_full_text else ""
    reason = completion.finish_reason
    return Response(
        generated_text=prefix + completion.text,
        prompt_length=len(output.prompt_token_ids),
        generated_length=len(completion.token_ids),
        finish_reason="" if reason is None else reason.value,
    )

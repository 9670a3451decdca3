"""An output as a notebook shows it: the text, its tokens on a ground of how likely they were."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fastgen_jax.markup import Markup, element, joined
from fastgen_jax.outputs import CompletionOutput, Logprob, RequestOutput, TokenLogprobs

_TEXT = {"style": "white-space:pre-wrap;font-family:monospace;margin:.3em 0"}
_NOTE = {"style": "opacity:.7;font-size:90%"}
_GROUND = "230,159,0"  # orange over light and dark grounds alike
_SHOWN_PROMPT = 2000


def output_html(output: RequestOutput) -> Markup:
    """The prompt and every completion; each token's tooltip names the likelier ones."""
    prompt = output.prompt
    told = f"{len(output.prompt_token_ids):,} prompt tokens"
    parts = [element("div", f"Request {output.request_id}, {told}", attributes=_NOTE)]
    if prompt is not None:
        shown = prompt if len(prompt) <= _SHOWN_PROMPT else prompt[:_SHOWN_PROMPT] + " …"
        parts.append(element("div", shown, attributes={"style": _TEXT["style"] + ";opacity:.7"}))
    for completion in output.outputs:
        parts += [_text(completion), _note(completion)]
    return element("div", *parts)


def _text(completion: CompletionOutput) -> Markup:
    if completion.error is not None:
        return element("div", f"failed: {completion.error}", attributes=_TEXT)
    if completion.logprobs is None:
        plain = completion.text or " ".join(map(str, completion.token_ids))
        return element("div", plain, attributes=_TEXT)
    tokens = zip(completion.token_ids, completion.logprobs, strict=False)
    return element("div", *(_token(*token) for token in tokens), attributes=_TEXT)


def _token(token_id: int, logprobs: TokenLogprobs) -> Markup:
    own = logprobs[token_id]
    doubt = 1.0 - math.exp(min(own.logprob, 0.0))
    shown = f"[{token_id}] " if own.decoded_token is None else own.decoded_token
    attributes = {
        "style": f"background:rgba({_GROUND},{0.75 * doubt:.2f})",
        "title": _tooltip(token_id, logprobs),
    }
    return element("span", shown or "\N{ZERO WIDTH SPACE}", attributes=attributes)


def _tooltip(token_id: int, logprobs: Mapping[int, Logprob]) -> str:
    own = logprobs[token_id]
    lines = [f"{_name(token_id, own)} {math.exp(own.logprob):.1%}, rank {own.rank:,}"]
    others = sorted(logprobs.items(), key=lambda entry: entry[1].rank)
    lines += [
        f"{one.rank}. {_name(other, one)} {math.exp(one.logprob):.1%}"
        for other, one in others
        if other != token_id
    ]
    return "\n".join(lines)


def _name(token_id: int, token: Logprob) -> str:
    return f"{token_id}" if token.decoded_token is None else repr(token.decoded_token)


def _note(completion: CompletionOutput) -> Markup:
    reason = completion.finish_reason
    ended = "not ended" if reason is None else reason.value
    if completion.stop_reason is not None:
        ended += f" {completion.stop_reason!r}"
    told = [f"completion {completion.index}", f"{len(completion.token_ids):,} tokens", ended]
    first = completion.metrics.time_to_first_token
    if first is not None:
        told.append(f"first token after {first:.3g} s")
    if completion.logprobs is not None:
        told.append("the stronger a token's colour, the less likely it was")
    return joined([element("div", ", ".join(told), attributes=_NOTE)])

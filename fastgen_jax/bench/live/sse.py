"""The stream of a completion over the OpenAI protocol: its events, and how many tokens they bring.

The protocol says nothing of tokens: an event brings text, of one token as a rule. A server may put
several into one, hold text back until it is whole characters, or send an event without text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Any

from fastgen_jax.bench.exchange import COUNTED_IDS, COUNTED_MESSAGES, COUNTED_USAGE

END = "[DONE]"


class StreamError(Exception):
    """The server said that the request failed, or what it said isn't the protocol."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What one event brings.

    Attributes:
        num_characters: of new text.
        token_ids: of the new tokens, where the server tells them.
        is_last: whether it says why the completion ended.
        is_end: whether it ends the stream.
        usage: (prompt tokens, output tokens) as the server counts them.
    """

    num_characters: int | None = None
    token_ids: tuple[int, ...] | None = None
    is_last: bool = False
    is_end: bool = False
    usage: tuple[int, int] | None = None

    @property
    def has_token(self) -> bool:
        """Whether at least one token came; an event that only says why it ended has none."""
        if self.token_ids is not None:
            return bool(self.token_ids)
        if self.num_characters is None:
            return False
        return self.num_characters > 0 or not self.is_last


def parse_line(line: str) -> Message | None:
    """The message in a line of the stream; None for comments, blank lines and other fields.

    Raises:
        StreamError: it holds an error, or no JSON of the protocol.
    """
    if not line.startswith("data:"):
        if line.startswith("error:"):  # llama.cpp's server
            raise StreamError(line[:300])
        return None
    text = line[len("data:") :].strip()
    if text == END:
        return Message(is_end=True)
    try:
        data = json.loads(text)
        if "error" in data:
            raise StreamError(_error_text(data["error"]))
        return _message(data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StreamError(f"no event of a completion: {text[:200]}") from error


def _message(data: dict[str, Any]) -> Message:
    usage = data.get("usage")
    counted = None
    if usage:
        counted = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    choices = data.get("choices") or ()
    if not choices:
        return Message(usage=counted)
    choice = choices[0]
    token_ids = choice.get("token_ids")
    return Message(
        num_characters=len(choice.get("text") or ""),
        token_ids=None if token_ids is None else tuple(int(one) for one in token_ids),
        is_last=choice.get("finish_reason") is not None,
        usage=counted,
    )


def _error_text(error: object) -> str:
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]


def count_tokens(messages: list[Message], num_output_tokens: int | None) -> tuple[list[int], str]:
    """Tokens of each message that has one, and how they were counted.

    With token ids in every message, as many as these. Otherwise one each; and what the server's
    total is above that goes, token by token, to the message with the most text for each token,
    since that is where held back or joined ones are. A total below leaves messages without text at
    none, first to last, then the last ones.
    """
    if messages and all(message.token_ids is not None for message in messages):
        return [len(message.token_ids or ()) for message in messages], COUNTED_IDS
    sizes = [1] * len(messages)
    if num_output_tokens is None or not messages:
        return sizes, COUNTED_MESSAGES
    surplus = num_output_tokens - len(messages)
    lengths = [message.num_characters or 0 for message in messages]
    if surplus > 0:
        _give(surplus, lengths, sizes)
    for index in _least_likely(lengths)[: max(-surplus, 0)]:
        sizes[index] = 0
    return sizes, COUNTED_USAGE


def _give(surplus: int, lengths: list[int], sizes: list[int]) -> None:
    """Give each further token to the message with the most text for each that it has."""
    if not any(lengths):
        lengths = [1] * len(lengths)
    pairs = zip(lengths, sizes, strict=True)
    queue = [(-length / size, at) for at, (length, size) in enumerate(pairs)]
    heapify(queue)
    for _ in range(surplus):
        at = queue[0][1]
        sizes[at] += 1
        heapreplace(queue, (-lengths[at] / sizes[at], at))


def _least_likely(lengths: list[int]) -> list[int]:
    """Messages by how little they look like a token."""
    empty = [index for index, length in enumerate(lengths) if not length]
    return empty + [index for index in reversed(range(len(lengths))) if lengths[index]]

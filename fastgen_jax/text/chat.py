"""Chat messages to a prompt, by the jinja template a model brings along."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastgen_jax.errors import InvalidRequestError, TokenizerError


class ChatTemplate:
    """A compiled chat template; compiling takes milliseconds, so keep it between requests.

    Templates come with downloaded models, so they run in jinja's sandbox. They see what Hugging
    Face's documentation promises them: messages, tools, add_generation_prompt, bos_token,
    eos_token, raise_exception, strftime_now, and tojson without HTML escapes.
    """

    def __init__(self, source: str | None) -> None:
        """Raises TokenizerError where there is no template, or where it isn't valid jinja."""
        if source is None:
            raise TokenizerError(
                "the model has no chat template",
                field="chat_template",
                remedy="send a plain prompt, or use an instruction-tuned checkpoint",
            )
        try:
            self._template = _environment().from_string(source)
        except TemplateError as error:
            raise TokenizerError(
                f"is no valid jinja template ({error})",
                field="chat_template",
                value=source,
                remedy="correct the template of the checkpoint",
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        bos_token: str | None = None,
        eos_token: str | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> str:
        """The prompt for ``messages``; encode it with ``add_special_tokens=False``.

        Raises InvalidRequestError for malformed messages and for those the template refuses.
        """
        _check_messages(messages)
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None if tools is None else [dict(tool) for tool in tools],
                add_generation_prompt=add_generation_prompt,
                bos_token=bos_token or "",
                eos_token=eos_token or "",
            )
        except Exception as error:  # a template is a program: any error can come out of it
            raise InvalidRequestError(
                f"the model's chat template refuses them: {error}",
                field="messages",
                value=[message["role"] for message in messages],
                remedy="change the messages to what the model's template accepts",
            ) from error


def render_chat(
    template: str | None,
    messages: Sequence[Mapping[str, object]],
    *,
    add_generation_prompt: bool = True,
    bos_token: str | None = None,
    eos_token: str | None = None,
    tools: Sequence[Mapping[str, object]] | None = None,
) -> str:
    """The prompt for ``messages`` by the jinja source ``template``; see ``ChatTemplate``."""
    return ChatTemplate(template).render(
        messages,
        add_generation_prompt=add_generation_prompt,
        bos_token=bos_token,
        eos_token=eos_token,
        tools=tools,
    )


class _GenerationBlock(Extension):
    """Accepts ``{% generation %}``, which marks assistant text for training, as its content."""

    tags = {"generation"}  # noqa: RUF012 - the name and type jinja prescribes

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _check_messages(messages: object) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise InvalidRequestError(
            "must be a non-empty list of messages",
            field="messages",
            value=messages,
            remedy='pass [{"role": "user", "content": "..."}]',
        )
    for index, message in enumerate(messages):
        _check_message(index, message)


def _check_message(index: int, message: object) -> None:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(
            "a message must be a dict",
            field=f"messages[{index}]",
            value=message,
            remedy='pass {"role": "user", "content": "..."}',
        )
    # An assistant turn that just calls tools has no text.
    optional = ("content",) if message.get("tool_calls") else ()
    for key in ("role", "content"):
        value = message.get(key)
        if not isinstance(value, str) and not (value is None and key in optional):
            raise InvalidRequestError(
                "is missing" if key not in message else "must be a string",
                field=f"messages[{index}][{key!r}]",
                value=value,
                remedy=f"give every message a string under {key!r}",
            )

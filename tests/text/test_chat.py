"""Chat templates: what they see, what they may refuse, and what they can't do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastgen_jax.errors import InvalidRequestError, TokenizerError
from fastgen_jax.testing.byte_tokenizer import ByteTokenizer
from fastgen_jax.text import ChatTemplate, render_chat

USER = [{"role": "user", "content": "hi"}]
REFERENCE = Path(__file__).parents[1] / "references" / "smollm2_tokenizer.json"


def test_blocks_leave_no_blank_lines() -> None:
    template = (
        "{% for m in messages %}\n  {% if true %}\n[{{ m.content }}]\n  {% endif %}\n{% endfor %}"
    )
    assert render_chat(template, USER) == "[hi]\n"


def test_special_tokens_and_generation_prompt() -> None:
    template = (
        "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}{{ add_generation_prompt }}"
    )
    assert render_chat(template, USER, bos_token="<s>", eos_token="</s>") == "<s>hi</s>True"
    assert render_chat(template, USER, add_generation_prompt=False) == "hiFalse"


def test_tojson_keeps_html_and_unicode() -> None:
    tools = [{"name": "find <b>", "about": "Größe & 'x'"}]
    assert json.loads(render_chat("{{ tools | tojson }}", USER, tools=tools)) == tools
    assert "<b>" in render_chat("{{ tools | tojson(indent=2) }}", USER, tools=tools)
    assert "Größe & 'x'" in render_chat("{{ tools | tojson }}", USER, tools=tools)


def test_absent_tools_are_none() -> None:
    assert render_chat("{{ tools is none }}", USER) == "True"


def test_loop_controls_generation_block_and_date() -> None:
    template = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render_chat(template, USER) == "01"
    assert render_chat("{% generation %}{{ 1 }}x{% endgeneration %}y", USER) == "1xy"
    assert render_chat("{{ strftime_now('%Y') }}", USER).isdecimal()


def test_refusal_of_the_template_is_an_invalid_request() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        render_chat(template, USER)


def test_error_inside_the_template_is_an_invalid_request() -> None:
    message = {"role": "assistant", "tool_calls": [{}]}
    with pytest.raises(InvalidRequestError, match="messages="):
        render_chat("{{ 'x' + messages[0].content }}", [message])


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages[0].update(a=1) }}"],
)
def test_sandbox_blocks_escapes_and_mutation(template: str) -> None:
    with pytest.raises(InvalidRequestError):
        render_chat(template, USER)


def test_missing_or_broken_template_is_a_tokenizer_error() -> None:
    with pytest.raises(TokenizerError, match="no chat template; send a plain prompt"):
        render_chat(None, USER)
    with pytest.raises(TokenizerError, match="no valid jinja"):
        render_chat("{% for %}", USER)


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ("hi", "messages"),
        (["hi"], "messages[0]"),
        ([*USER, {"content": "x"}], "messages[1]['role']"),
        ([{"role": "user"}], "messages[0]['content']"),
        ([{"role": "user", "content": 3}], "messages[0]['content']"),
        ([{"role": None, "content": "x"}], "messages[0]['role']"),
    ],
)
def test_malformed_messages_name_index_and_key(messages: list, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        render_chat("x", messages)
    assert caught.value.field == field
    assert caught.value.remedy


def test_compiled_template_serves_many_requests() -> None:
    template = ChatTemplate(ByteTokenizer.chat_template)
    assert template.render(USER) == "user: hi\nassistant:"
    assert template.render(USER * 2, add_generation_prompt=False) == "user: hi\nuser: hi\n"


@pytest.mark.real_model
def test_real_template_renders_as_transformers_does(smollm2_fields: dict[str, object]) -> None:
    source = smollm2_fields["tokenizer.chat_template"]
    assert isinstance(source, str)
    template = ChatTemplate(source)
    for chat in json.loads(REFERENCE.read_text(encoding="utf-8"))["chats"]:
        assert template.render(chat["messages"]) == chat["prompt"]

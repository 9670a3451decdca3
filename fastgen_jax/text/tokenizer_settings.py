"""What the JSON files beside a vocabulary say about special tokens and chat."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastgen_jax.errors import TokenizerError


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A token matched whole in the text; ``token_id`` is None where the vocabulary decides it."""

    content: str
    token_id: int | None = None
    special: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSettings:
    """The special tokens, end ids and chat template of one checkpoint directory.

    ``add_bos`` and ``add_eos`` are None where the files leave it to the tokenizer's own default.
    ``prefix_after_special`` is Hugging Face's ``legacy``: a sentencepiece vocabulary puts its space
    prefix after every special token too, not just at the start of the text.
    """

    bos_token: str | None = None
    eos_token: str | None = None
    eos_token_ids: tuple[int, ...] = ()
    added_tokens: tuple[AddedToken, ...] = ()
    add_bos: bool | None = None
    add_eos: bool | None = None
    chat_template: str | None = None
    prefix_after_special: bool = True


def read_tokenizer_settings(directory: Path) -> TokenizerSettings:
    """The settings in ``directory``; absent files leave the defaults.

    Reads special_tokens_map.json, tokenizer_config.json (which wins), added_tokens.json,
    generation_config.json and chat_template.jinja. Raises TokenizerError for a malformed file.
    """
    config = {
        **_read_object(directory / "special_tokens_map.json"),
        **_read_object(directory / "tokenizer_config.json"),
    }
    generation = _read_object(directory / "generation_config.json")
    numbered = _read_object(directory / "added_tokens.json")
    return TokenizerSettings(
        bos_token=_token_content(config.get("bos_token")),
        eos_token=_token_content(config.get("eos_token")),
        eos_token_ids=_ids(generation.get("eos_token_id"), directory / "generation_config.json"),
        added_tokens=_added_tokens(config, numbered),
        add_bos=_flag(config.get("add_bos_token")),
        add_eos=_flag(config.get("add_eos_token")),
        chat_template=_chat_template(config, directory),
        prefix_after_special=config.get("legacy") is not False,
    )


def _read_object(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _corrupt(path, f"is no valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise _corrupt(path, "holds no JSON object")
    return value


def _corrupt(path: Path, problem: str) -> TokenizerError:
    return TokenizerError(
        problem, field=path.name, value=str(path), remedy="download the file again"
    )


def _token_content(value: object) -> str | None:
    """The string of a token, which the files write bare or as ``{"content": ...}``."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _ids(value: object, path: Path) -> tuple[int, ...]:
    if value is None:
        return ()
    values: list[object] = value if isinstance(value, list) else [value]
    ids = tuple(item for item in values if isinstance(item, int))
    if len(ids) != len(values):
        raise _corrupt(path, f"has an eos_token_id that is no integer: {value!r}")
    return ids


def _added_tokens(
    config: Mapping[str, object], numbered: Mapping[str, object]
) -> tuple[AddedToken, ...]:
    """One entry for each token string, the numbered description kept over the bare name."""
    tokens: dict[str, AddedToken] = {}
    for token in (*_named_tokens(config), *_numbered_tokens(numbered), *_decoder_tokens(config)):
        tokens[token.content] = token
    return tuple(tokens.values())


def _named_tokens(config: Mapping[str, object]) -> Iterator[AddedToken]:
    additional = config.get("additional_special_tokens")
    roles = [config.get(f"{role}_token") for role in ("bos", "eos", "unk", "pad")]
    for value in (*roles, *(additional if isinstance(additional, list) else ())):
        content = _token_content(value)
        if content is not None:
            yield AddedToken(content=content)


def _numbered_tokens(numbered: Mapping[str, object]) -> Iterator[AddedToken]:
    for content, token_id in numbered.items():
        if isinstance(token_id, int):
            yield AddedToken(content=content, token_id=token_id, special=False)


def _decoder_tokens(config: Mapping[str, object]) -> Iterator[AddedToken]:
    described = config.get("added_tokens_decoder")
    for key, value in (described if isinstance(described, Mapping) else {}).items():
        content = _token_content(value)
        if content is not None and isinstance(key, str) and key.isdecimal():
            special = isinstance(value, Mapping) and value.get("special") is True
            yield AddedToken(content=content, token_id=int(key), special=special)


def _chat_template(config: Mapping[str, object], directory: Path) -> str | None:
    """The template file if there is one, else the config's (its "default" one of several)."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, str):
        return template
    for entry in template if isinstance(template, list) else ():
        if isinstance(entry, Mapping) and entry.get("name") == "default":
            source = entry.get("template")
            return source if isinstance(source, str) else None
    return None

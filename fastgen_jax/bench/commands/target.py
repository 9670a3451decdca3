"""Opening what is measured: an engine in this process or a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastgen_jax.bench.commands.options import TargetOptions
from fastgen_jax.bench.live.openai_http import OpenAIHttp, ServerSettings
from fastgen_jax.bench.live.prompt_tokens import MadeUpTokens
from fastgen_jax.bench.live.transport import Transport
from fastgen_jax.config import EngineConfig
from fastgen_jax.engine_options import EngineOptions
from fastgen_jax.errors import ConfigError
from fastgen_jax.text import Tokenizer

_SERVER_VOCABULARY = 32_000  # no common model has fewer tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A transport that is ready, and the tokens that its prompts may hold."""

    transport: Transport
    vocab_size: int
    num_special_ids: int

    def tokens(self, salt: int) -> MadeUpTokens:
        """Prompts that share nothing with those of another salt."""
        return MadeUpTokens(
            vocab_size=self.vocab_size, num_special_ids=self.num_special_ids, salt=salt
        )


def check_target(options: TargetOptions, engine: EngineOptions) -> None:
    """Refuse settings of the engine beside a server, and of a server beside the engine.

    Raises:
        ConfigError: names the option.
    """
    if options.url is not None and engine != EngineOptions():
        raise ConfigError(
            "the engine's settings mean nothing to a server",
            field="url",
            value=options.url,
            remedy="leave the settings out, and give them to the server when you start it",
        )
    if options.url is None:
        for name in ("served_model", "api_key", "tokenizer", "extra_body"):
            value = getattr(options, name)
            if value is not None:
                shown = "…" if name == "api_key" else value
                raise ConfigError("is for a server", field=name, value=shown, remedy="give --url")
    if (options.prompts == "text") != (options.tokenizer is not None):
        raise ConfigError(
            "and a tokenizer go together",
            field="prompts",
            value=options.prompts,
            remedy="give --prompts text and --tokenizer MODEL, or neither",
        )


async def open_target(options: TargetOptions, config: EngineConfig) -> Target:
    """The engine, started, or the server, found.

    Raises:
        FastGenError: the model or a setting can't be used, or no server answers.
    """
    if options.url is not None:
        return await _open_server(options, options.url)
    return await asyncio.to_thread(_open_engine, options, config)


def _open_engine(options: TargetOptions, config: EngineConfig) -> Target:
    import jax

    from fastgen_jax.async_llm import AsyncLLM
    from fastgen_jax.bench.live.in_process import InProcess

    llm = AsyncLLM(options.model, config=config)
    scheduler = llm.llm.engine.scheduler.config
    device = jax.devices()[0]
    description = {
        "kind": "in_process",
        "model": options.model,
        "device": device.device_kind,
        "platform": device.platform,
        "num_devices": config.num_devices,
        "settings": engine_settings(config),
        "scheduler": asdict(scheduler),
    }
    vocab_size = options.vocab_size or llm.llm.model_config.vocab_size
    return Target(
        transport=InProcess(llm, description=description),
        vocab_size=vocab_size,
        num_special_ids=min(options.special_ids, vocab_size // 2),
    )


def engine_settings(config: EngineConfig) -> dict[str, Any]:
    """What is set, for a results file; without places on this machine."""
    found = asdict(config)
    del found["compilation_cache_dir"]
    return {name: value for name, value in found.items() if value is not None}


async def _open_server(options: TargetOptions, url: str) -> Target:
    settings = ServerSettings(
        url=url,
        model=options.served_model,
        api_key=options.api_key,
        timeout=options.timeout,
        ignore_eos=options.ignore_eos,
        extra_body=_extra_body(options.extra_body),
    )
    tokenizer = None if options.tokenizer is None else _tokenizer(options.tokenizer)
    transport = OpenAIHttp(settings, tokenizer=tokenizer)
    try:
        await transport.connect()
    except BaseException:
        await transport.close()
        raise
    known = _SERVER_VOCABULARY if tokenizer is None else tokenizer.vocab_size
    return Target(
        transport=transport,
        vocab_size=options.vocab_size or known,
        num_special_ids=options.special_ids,
    )


def _extra_body(text: str | None) -> Mapping[str, Any]:
    if text is None:
        return {}
    try:
        body = json.loads(text)
    except ValueError as error:
        raise ConfigError(str(error), field="extra_body", value=text) from error
    if not isinstance(body, dict):
        raise ConfigError("is no JSON object", field="extra_body", value=text)
    return body


def _tokenizer(model: str) -> Tokenizer:
    from fastgen_jax.model_files import open_model, open_tokenizer
    from fastgen_jax.models.sources import resolve_model

    path: Path = resolve_model(model)
    with open_model(path, EngineConfig(load_format="auto")) as files:
        tokenizer = open_tokenizer(files)
    if tokenizer is None:
        raise ConfigError("has no tokenizer", field="tokenizer", value=model)
    return tokenizer

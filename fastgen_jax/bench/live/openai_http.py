"""Requests to a server that speaks the OpenAI protocol: vLLM, llama.cpp's, and others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastgen_jax.bench.live.sse import Message, StreamError, count_tokens, parse_line
from fastgen_jax.bench.live.transport import Reply
from fastgen_jax.errors import ConfigError
from fastgen_jax.sim.arrival import Arrival

if TYPE_CHECKING:
    import httpx

    from fastgen_jax.text import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Where the server is and how it is talked to.

    Attributes:
        url: with scheme and port; a "/v1" at its end may be left out.
        model: the name it serves; None asks it for its first one.
        api_key: for the Authorization header; in no results file.
        timeout: most seconds between two pieces of an answer; None: no limit.
        connect_timeout: most seconds until a connection stands.
        ignore_eos: ask for ``ignore_eos``, which vLLM and llama.cpp's server know. Others may
            refuse it, and then answers have lengths of their own.
        extra_body: further fields of every request.
    """

    url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float | None = 600.0
    connect_timeout: float = 10.0
    ignore_eos: bool = True
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what is no address."""
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                "is no address of a server",
                field="url",
                value=self.url,
                remedy='write it as "http://127.0.0.1:8000"',
            )

    @property
    def base(self) -> str:
        """The address up to and with "/v1"."""
        return self.url.rstrip("/").removesuffix("/v1") + "/v1"


class OpenAIHttp:
    """Streams of ``/v1/completions``; prompts as token ids, or as text of a tokenizer."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        tokenizer: Tokenizer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``tokenizer`` turns prompts to text, for servers that refuse token ids.

        Raises:
            ConfigError: httpx isn't installed.
        """
        self._settings = settings
        self._tokenizer = tokenizer
        self._clock = clock
        self._model = settings.model
        self._httpx = _import_httpx()
        headers: dict[str, str] = {}
        if settings.api_key is not None:
            headers["Authorization"] = f"Bearer {settings.api_key}"
        self._client: httpx.AsyncClient = self._httpx.AsyncClient(
            headers=headers,
            timeout=self._httpx.Timeout(settings.timeout, connect=settings.connect_timeout),
            # No request may wait here for another's connection.
            limits=self._httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
        )

    async def connect(self) -> None:
        """Find the server, and the name of its model where none was given.

        Raises:
            ConfigError: nobody answers at the URL, or not as such a server would.
        """
        url = f"{self._settings.base}/models"
        try:
            response = await self._client.get(url)
        except self._httpx.HTTPError as error:
            raise ConfigError(
                f"no answer from {url} ({_describe(error)})",
                field="url",
                value=self._settings.url,
                remedy="start the server first and wait until it is ready, or correct the address",
            ) from error
        if self._model is not None:
            return  # /v1/models may be closed where completions are open
        try:
            self._model = str(response.raise_for_status().json()["data"][0]["id"])
        except (self._httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            raise ConfigError(
                f"{url} named no model (HTTP {response.status_code})",
                field="url",
                value=self._settings.url,
                remedy="give --served-model, and --api-key where the server wants one",
            ) from error

    async def send(self, arrival: Arrival) -> Reply:
        """The answer's stream; HTTP errors, broken streams and time-outs are failed requests."""
        body = self._body(arrival)
        messages: list[Message] = []
        times: list[float] = []
        reply = Reply(sent_time=self._clock())
        wanted = arrival.num_output_tokens
        # Where max_tokens says more, the end is a surprise, and the client's own.
        stop_after = wanted if (arrival.max_tokens or 0) > wanted else None
        try:
            async with self._client.stream(
                "POST", f"{self._settings.base}/completions", json=body
            ) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode(errors="replace")
                    raise StreamError(f"HTTP {response.status_code}: {text[:300]}")
                await self._read(response, reply, messages, times, stop_after)
        except (self._httpx.HTTPError, StreamError) as error:
            reply.error = _describe(error)
        sizes, reply.counting = count_tokens(messages, reply.num_server_output_tokens)
        for when, size in zip(times, sizes, strict=True):
            reply.add(when, size)
        if stop_after is not None:
            del reply.token_times[stop_after:]  # of the last message
        if messages and all(message.token_ids is not None for message in messages):
            told = [token_id for message in messages for token_id in message.token_ids or ()]
            reply.token_ids = told[:stop_after]
        return reply

    async def counters(self) -> Mapping[str, Any] | None:
        """Nothing: servers count in ways of their own."""
        return None

    def describe(self) -> dict[str, Any]:
        """The server's address and what requests ask for."""
        settings = self._settings
        return {
            "kind": "openai_http",
            "url": settings.url,
            "model": self._model,
            "prompts": "token ids" if self._tokenizer is None else "text",
            "ignore_eos": settings.ignore_eos,
            "extra_body": dict(settings.extra_body),
            "timeout": settings.timeout,
        }

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _body(self, arrival: Arrival) -> dict[str, Any]:
        prompt: Any = list(arrival.prompt_token_ids)
        if self._tokenizer is not None:
            prompt = self._tokenizer.decode(prompt, skip_special_tokens=False)
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": arrival.max_tokens or arrival.num_output_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._settings.ignore_eos:
            body["ignore_eos"] = True
        return body | dict(self._settings.extra_body)

    async def _read(
        self,
        response: httpx.Response,
        reply: Reply,
        messages: list[Message],
        times: list[float],
        stop_after: int | None,
    ) -> None:
        """Note the stream's messages until its end, or until so many tokens have come."""
        num_tokens = 0
        is_done = False
        async for line in response.aiter_lines():
            now = self._clock()
            message = parse_line(line)
            if message is None:
                continue
            if message.is_end:
                return
            if message.usage is not None:
                reply.num_server_prompt_tokens, reply.num_server_output_tokens = message.usage
            if message.has_token:
                messages.append(message)
                times.append(now)
                num_tokens += 1 if message.token_ids is None else len(message.token_ids)
            is_done = is_done or message.is_last
            if stop_after is not None and num_tokens >= stop_after:
                return
        if not is_done:
            raise StreamError(f"the stream broke off after {len(messages)} messages")


def _import_httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise ConfigError(
            "needs httpx, which isn't installed",
            field="url",
            remedy='pip install "fastgen-jax[bench]"',
        ) from error
    return httpx


def _describe(error: Exception) -> str:
    """An error's words with its kind; time-outs have none of their own."""
    if isinstance(error, StreamError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

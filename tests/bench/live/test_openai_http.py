"""Requests over HTTP, against a server in this process."""

from __future__ import annotations

import asyncio
import builtins
import socket
from typing import Any

import pytest

from fastgen_jax.bench.live.openai_http import OpenAIHttp, ServerSettings
from fastgen_jax.bench.live.transport import Reply
from fastgen_jax.errors import ConfigError
from fastgen_jax.sim.arrival import Arrival
from tests.bench.live.conftest import FakeServer, event, usage

ARRIVAL = Arrival(time=0.0, prompt_token_ids=(7, 8, 9), num_output_tokens=4)


def send(server: FakeServer, arrival: Arrival = ARRIVAL, **settings: Any) -> Reply:
    async def run() -> Reply:
        transport = OpenAIHttp(ServerSettings(url=server.url, **settings))
        try:
            await transport.connect()
            return await transport.send(arrival)
        finally:
            await transport.close()

    return asyncio.run(run())


def test_a_request_is_what_the_arrival_says(server: FakeServer) -> None:
    reply = send(server, api_key="secret", extra_body={"cache_prompt": False})
    assert reply.error is None
    assert (len(reply.token_times), reply.message_sizes) == (4, [1, 1, 1, 1])
    assert reply.counting == "usage"
    assert (reply.num_server_prompt_tokens, reply.num_server_output_tokens) == (3, 4)
    assert server.script.bodies == [
        {
            "model": "served",
            "prompt": [7, 8, 9],
            "max_tokens": 4,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            "cache_prompt": False,
        }
    ]
    assert server.script.headers[0]["Authorization"] == "Bearer secret"


def test_the_key_is_in_no_description(server: FakeServer) -> None:
    settings = ServerSettings(url=server.url, api_key="secret")
    assert "secret" not in repr(settings)
    assert "secret" not in str(OpenAIHttp(settings).describe())


def test_times_are_those_at_which_the_messages_came(server: FakeServer) -> None:
    server.script.seconds_between = 0.05
    reply = send(server)
    assert reply.token_times == sorted(reply.token_times)
    assert reply.token_times[-1] - reply.token_times[0] > 0.1  # of 0.15
    assert reply.token_times[0] >= reply.sent_time


def test_a_message_with_several_tokens_gives_all_of_them_its_time(server: FakeServer) -> None:
    server.script.lines = [
        event("one"),
        event(" two three four"),
        event("", "length"),
        event(usage=usage(3, 4)),  # as vLLM sends it: without choices, after the end
        "data: [DONE]",
    ]
    reply = send(server)
    assert reply.error is None
    assert reply.message_sizes == [1, 3]
    assert reply.token_times[1] == reply.token_times[3]
    assert reply.counting == "usage"


def test_token_ids_are_counted_where_they_are_sent(server: FakeServer) -> None:
    server.script.lines = [
        event("", token_ids=[5]),
        event("ab", token_ids=[6, 7]),
        event("c", "length", token_ids=[8]),
        "data: [DONE]",
    ]
    reply = send(server)
    assert (reply.message_sizes, reply.counting) == ([1, 2, 1], "ids")
    assert reply.token_ids == [5, 6, 7, 8]


def test_a_surprising_end_is_the_clients(server: FakeServer) -> None:
    arrival = Arrival(time=0.0, prompt_token_ids=(1,), num_output_tokens=2, max_tokens=50)
    reply = send(server, arrival)
    assert server.script.bodies[0]["max_tokens"] == 50
    assert (reply.error, len(reply.token_times)) == (None, 2)


@pytest.mark.parametrize(
    ("lines", "breaks_off", "words", "num_tokens"),
    [
        ([event("a"), 'data: {"error": {"message": "out of memory"}}'], False, "out of mem", 1),
        ([event("a"), "error: slot lost"], False, "slot lost", 1),
        ([event("a"), event("b")], False, "broke off after 2 messages", 2),
        ([event("a"), event("b")], True, "Error", 2),
        ([event("a"), "data: <html>"], False, "no event of a completion: <html>", 1),
        ([event("a"), 'data: {"choices": [3]}'], False, "no event", 1),
    ],
)
def test_a_broken_stream_is_a_failed_request_with_what_came(
    server: FakeServer, lines: list[str], breaks_off: bool, words: str, num_tokens: int
) -> None:
    server.script.lines = lines
    server.script.breaks_off = breaks_off
    reply = send(server)
    assert reply.error is not None
    assert words in reply.error
    assert len(reply.token_times) == num_tokens


def test_a_refusal_is_a_failed_request_with_its_words(server: FakeServer) -> None:
    server.script.status = 500
    reply = send(server)
    assert reply.error is not None
    assert reply.error.startswith("HTTP 500: ")
    assert "too much" in reply.error
    assert reply.token_times == []


def test_silence_is_a_failed_request(server: FakeServer) -> None:
    server.script.seconds_between = 0.5
    reply = send(server, timeout=0.1)
    assert reply.error is not None
    assert "ReadTimeout" in reply.error


def test_text_goes_to_servers_that_refuse_ids(server: FakeServer) -> None:
    class Words:
        def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
            assert not skip_special_tokens
            return " ".join(map(str, token_ids))

    async def run() -> Reply:
        transport = OpenAIHttp(ServerSettings(url=server.url), tokenizer=Words())  # type: ignore
        try:
            return await transport.send(ARRIVAL)
        finally:
            await transport.close()

    assert asyncio.run(run()).error is None
    assert server.script.bodies[0]["prompt"] == "7 8 9"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "", "ftp://a"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^url=.*write it as"):
        ServerSettings(url=url)


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_the_version_may_be_in_the_address_or_not(end: str) -> None:
    assert ServerSettings(url=f"http://host:1{end}").base == "http://host:1/v1"


def test_nobody_at_the_address_is_an_error_with_the_remedy() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"

    async def run() -> None:
        transport = OpenAIHttp(ServerSettings(url=url))
        try:
            await transport.connect()
        finally:
            await transport.close()

    with pytest.raises(ConfigError, match=f"no answer from {url}/v1/models.*start the server"):
        asyncio.run(run())


def test_a_server_that_names_no_model_needs_the_name(server: FakeServer) -> None:
    server.script.models_status = 401
    with pytest.raises(ConfigError, match=r"HTTP 401.*--served-model, and --api-key"):
        send(server)
    assert send(server, model="mine").error is None
    assert server.script.bodies[0]["model"] == "mine"


def test_without_httpx_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "httpx":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r'pip install "fastgen-jax\[bench\]"'):
        OpenAIHttp(ServerSettings(url="http://host"))

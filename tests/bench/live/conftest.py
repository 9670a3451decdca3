"""A small server of the OpenAI protocol that answers as it is told."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Script:
    """What the server does; each line of ``lines`` is an event of its stream."""

    lines: list[str] = field(default_factory=list)
    status: int = 200
    seconds_between: float = 0.0
    breaks_off: bool = False
    models_status: int = 200
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@dataclass
class FakeServer:
    """Its address, and the script that it follows."""

    url: str
    script: Script


def event(text: str | None = None, finish: str | None = None, **more: Any) -> str:
    """A line of the stream as servers write it."""
    choices = [] if text is None else [{"index": 0, "text": text, "finish_reason": finish}]
    if "token_ids" in more:
        choices[0]["token_ids"] = more.pop("token_ids")
    return "data: " + json.dumps({"choices": choices, **more})


def usage(prompt: int, output: int) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def answer(num_tokens: int, num_prompt: int) -> list[str]:
    """An answer with a token in each event, as llama.cpp's server gives it."""
    lines = [event(" word") for _ in range(num_tokens)]
    return [*lines, event("", "length", usage=usage(num_prompt, num_tokens)), "data: [DONE]"]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that answers with as many tokens as asked for, unless its script has lines."""
    script = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(script.models_status, json.dumps({"data": [{"id": "served"}]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.bodies.append(body)
            script.headers.append(dict(self.headers))
            if script.status != 200:
                self._reply(script.status, '{"error": {"message": "too much"}}')
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for line in script.lines or answer(body["max_tokens"], len(body["prompt"])):
                self._chunk(line + "\n\n")
                time.sleep(script.seconds_between)
            if script.breaks_off:
                self.close_connection = True
                return
            self._chunk("")

        def _chunk(self, text: str) -> None:
            data = text.encode()
            with suppress(ConnectionError):  # a client that had enough
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()

        def _reply(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    httpd = Server(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield FakeServer(f"http://127.0.0.1:{httpd.server_address[1]}", script)
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()

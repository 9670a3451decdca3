"""llama.cpp's server behind the line protocol: continuous batching over HTTP on this machine.

Every request of a workload is posted at once by a thread of its own; the server decides what runs
together. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

HOST = "127.0.0.1"
START_SECONDS = 120.0
REQUEST_SECONDS = 3600.0


def main() -> None:
    """Start the server, then serve."""
    from protocol import Requests, serve, take_stdout

    arguments = parse_arguments()
    messages = take_stdout()
    start = time.perf_counter()
    port = free_port()
    with running_server(server_command(arguments, port)) as server:
        version = wait_until_ready(server, port)
        with ThreadPoolExecutor(arguments.max_num_seqs) as threads:

            def run(requests: Requests) -> dict[str, Any]:
                begin = time.perf_counter()
                answers = list(threads.map(lambda one: complete(port, one), requests))
                seconds = time.perf_counter() - begin
                return {
                    "seconds": seconds,
                    "output_token_ids": [answer["tokens"] for answer in answers],
                    "timings": [answer["timings"] for answer in answers],
                }

            ready = {"engine": "llama.cpp", "version": version}
            serve(messages, {**ready, "engine_seconds": time.perf_counter() - start}, run)


def server_command(arguments: argparse.Namespace, port: int) -> list[str]:
    """llama-server with a slot per request, each as long as the longest request."""
    slots, threads = arguments.max_num_seqs, str(arguments.threads)
    command = [arguments.server, "--model", arguments.model, "--host", HOST, "--port", str(port)]
    command += ["--parallel", str(slots), "--ctx-size", str(slots * arguments.max_model_len)]
    command += ["--threads", threads, "--threads-batch", threads]
    command += ["--batch-size", str(arguments.batch), "--ubatch-size", str(arguments.ubatch)]
    command += ["--flash-attn", arguments.flash_attention, "--cache-ram", "0"]
    return [*command, "--kv-unified" if arguments.kv_unified else "--no-kv-unified", "--offline"]


def completion_request(request: dict[str, Any]) -> dict[str, Any]:
    """The body of a greedy completion of exactly so many tokens, without a cached prefix."""
    return {
        "prompt": request["prompt_token_ids"],
        "n_predict": request["max_tokens"],
        "ignore_eos": True,
        "temperature": 0.0,
        "samplers": ["temperature"],  # nothing but the argmax
        "cache_prompt": False,
        "return_tokens": True,
        "response_fields": ["tokens", "timings"],
    }


def complete(port: int, request: dict[str, Any]) -> dict[str, Any]:
    """The server's answer to one request: "tokens" and "timings"."""
    connection = http.client.HTTPConnection(HOST, port, timeout=REQUEST_SECONDS)
    try:
        body = json.dumps(completion_request(request))
        connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise RuntimeError(f"llama-server answered {response.status}: {content[:500]!r}")
    return json.loads(content)


@contextmanager
def running_server(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The server's process, ended at the end; what it prints goes to standard error."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> str:
    """The server's build, as it tells it, once the model is loaded and warmed up.

    Raises:
        RuntimeError: it ended, or wasn't ready in time.
    """
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"llama-server ended with status {server.returncode}")
        if _get(port, "/health") is not None:
            properties = _get(port, "/props") or {}
            return str(properties.get("build_info", "unknown"))
        time.sleep(0.05)
    raise RuntimeError(f"llama-server wasn't ready after {START_SECONDS:.0f} s")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _get(port: int, path: str) -> dict[str, Any] | None:
    """What the server says at a path; None while it doesn't listen or isn't ready."""
    connection = http.client.HTTPConnection(HOST, port, timeout=10.0)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        content = response.read()
        return json.loads(content) if response.status == http.client.OK else None
    except OSError:
        return None
    finally:
        connection.close()


def parse_arguments() -> argparse.Namespace:
    """The server's binary, the model and the settings from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--server", required=True, help="the llama-server binary")
    parser.add_argument("--model", required=True, help="a .gguf file")
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--max-num-seqs", type=int, default=32)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--ubatch", type=int, default=512)
    parser.add_argument("--flash-attention", choices=("on", "off", "auto"), default="auto")
    parser.add_argument("--kv-unified", action="store_true", help="one cache for all slots")
    return parser.parse_args()


if __name__ == "__main__":
    main()

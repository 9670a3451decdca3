from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.engine_commands import EngineSizes, llama_cpp_command
from benchmarks.engine_process import EngineProcess
from benchmarks.peers.llama_cpp_peer import completion_request
from benchmarks.workload import WorkloadRequest

# Speaks as much of llama-server's HTTP as the peer needs; answers with the prompt's first token.
SERVER = f"""#!{sys.executable}
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

options = dict(zip(sys.argv[1::2], sys.argv[2::2]))

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, {{"build_info": "b7"}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["prompt"] == [13]:
            self.answer(500, {{"error": "unlucky"}})
            return
        assert self.path == "/completion" and not body["cache_prompt"] and body["ignore_eos"]
        self.answer(200, {{"tokens": body["prompt"][:1] * body["n_predict"], "timings": options}})

    def answer(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass

ThreadingHTTPServer(("127.0.0.1", int(options["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    server = tmp_path / "llama-server"
    server.write_text(SERVER)
    server.chmod(0o755)
    return llama_cpp_command(
        server,
        Path("model.gguf"),
        EngineSizes(max_model_len=256, max_num_seqs=4),
        ubatch=128,
        flash_attention="off",
        kv_unified=False,
    )


def request(*prompt: int, max_tokens: int) -> WorkloadRequest:
    return WorkloadRequest(prompt_token_ids=prompt, max_tokens=max_tokens)


def test_a_server_is_started_asked_and_ended(command: list[str]):
    with EngineProcess("llama.cpp", command) as engine:
        assert engine.ready["engine"] == "llama.cpp"
        assert engine.ready["version"] == "b7"
        answer = engine.run([request(5, 6, max_tokens=3), request(7, max_tokens=1)])
        assert answer["output_token_ids"] == [[5, 5, 5], [7]]
        assert answer["seconds"] > 0.0
        options = answer["timings"][0]
        children = psutil.Process(engine.pid).children(recursive=True)
        assert children
    assert not any(child.is_running() for child in children)
    assert options["--parallel"] == "4"
    assert options["--ctx-size"] == str(4 * 256)
    assert options["--ubatch-size"] == "128"
    assert options["--flash-attn"] == "off"
    assert options["--threads"] == options["--threads-batch"]


def test_a_request_that_fails_ends_the_engine(command: list[str], tmp_path: Path):
    log = tmp_path / "log"
    with (
        EngineProcess("llama.cpp", command, log=log) as engine,
        pytest.raises(RuntimeError, match=r"llama\.cpp ended with status 1"),
    ):
        engine.run([request(13, max_tokens=1)])
    assert "llama-server answered 500" in log.read_text()


def test_completions_are_greedy_of_exact_length_and_uncached():
    body = completion_request({"prompt_token_ids": [4, 5], "max_tokens": 6})
    assert body["prompt"] == [4, 5]
    assert body["n_predict"] == 6
    assert body["temperature"] == 0.0
    assert body["ignore_eos"] is True
    assert body["cache_prompt"] is False

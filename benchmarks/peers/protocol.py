"""How an engine's process is talked to: a JSON object a line, on standard input and output.

The process says ``{"event": "ready", ...}`` once. Each ``{"requests": [...]}`` is then answered
with ``{"event": "result", ...}``, until standard input ends. Only the standard library is used,
since each engine's interpreter has packages of its own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

Requests = list[dict[str, Any]]  # "prompt_token_ids": list[int], "max_tokens": int


def take_stdout() -> TextIO:
    """The standard output for messages alone; what else prints to it goes to standard error.

    Call it before the engine starts processes, which inherit the exchanged one.
    """
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return messages


def send(messages: TextIO, content: dict[str, Any]) -> None:
    """Write one message."""
    messages.write(json.dumps(content) + "\n")
    messages.flush()


def serve(
    messages: TextIO, ready: dict[str, Any], run: Callable[[Requests], dict[str, Any]]
) -> None:
    """Tell that the engine is ready, then run every workload that comes, until input ends.

    ``run`` gives "seconds", the wall time of generating alone, and "output_token_ids", a list per
    request; other entries are passed on.
    """
    send(messages, {"event": "ready", **ready})
    for line in sys.stdin:
        send(messages, {"event": "result", **run(json.loads(line)["requests"])})

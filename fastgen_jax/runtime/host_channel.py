"""From the leading host to the others: what to run next, and who is still there.

Plain sockets beside the devices' own network: a step's input is a few kilobytes, and the end of a
process is noticed at once, where a collective would hang. Every message is its kind, its length
and its bytes; both sides send a sign of life when there is nothing else to say.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from fastgen_jax.errors import ConfigError, HostLostError

_HEADER = struct.Struct("!BQ")
_ALIVE, _HELLO, _REFUSED, _FAILED, _COMMAND, _CLOSE = range(6)
# Signs of life within the time after which a host counts as lost.
_SIGNS = 4


@dataclass(frozen=True, slots=True)
class _Message:
    kind: int
    data: bytes


class _Line:
    """One end of a connection."""

    def __init__(self, connection: socket.socket, peer: str, timeout: float) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(timeout)
        self.peer = peer
        self._timeout = timeout
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, kind: int, data: bytes = b"") -> None:
        try:
            with self._sending:
                self._connection.sendall(_HEADER.pack(kind, len(data)) + data)
        except OSError as error:
            raise self._lost(str(error)) from error

    def receive(self) -> _Message:
        """The next message that isn't just a sign of life."""
        while True:
            kind, size = _HEADER.unpack(self._exactly(_HEADER.size))
            data = self._exactly(size)
            if kind != _ALIVE:
                return _Message(kind, data)

    def keep_alive(self, ended: threading.Event) -> None:
        """Say that this end is there until it has ended or the other one is gone."""
        while not ended.wait(self._timeout / _SIGNS):
            try:
                self.send(_ALIVE)
            except HostLostError:
                return

    def close(self) -> None:
        self._connection.close()

    def _exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            try:
                part = self._connection.recv(min(size, 1 << 20))
            except TimeoutError as error:
                raise self._lost(f"silent for {self._timeout:g} s") from error
            except OSError as error:
                raise self._lost(str(error)) from error
            if not part:
                raise self._lost("its process has ended")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _lost(self, problem: str) -> HostLostError:
        return HostLostError(
            f"{self.peer} is gone: {problem}", remedy="look at its output, and start all hosts anew"
        )


class Leader:
    """The leading host's end: commands to all others, and a watch over them."""

    def __init__(self, lines: list[_Line], timeout: float) -> None:
        self._lines = lines
        self._timeout = timeout
        self._ended = threading.Event()
        self._lost: HostLostError | None = None
        self._lost_event = threading.Event()
        self._watchers = [_started(self._watch, line) for line in lines]
        for line in lines:
            _started(line.keep_alive, self._ended)

    def send(self, data: bytes) -> None:
        """Have all other hosts run a command; HostLostError where one is gone."""
        self.check()
        for line in self._lines:
            line.send(_COMMAND, data)

    def check(self) -> None:
        """Raise HostLostError where a host is known to be gone."""
        if self._lost is not None:
            raise self._lost

    def wait_for_loss(self, seconds: float) -> None:
        """Raise HostLostError when a host turns out to be gone within the time."""
        self._lost_event.wait(seconds)
        self.check()

    def close(self) -> None:
        """Tell the others that it is over, and wait until they have left; twice is harmless.

        It waits no longer than the timeout: one that still lives, but can't leave, is left behind.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        for line in self._lines:
            with suppress(HostLostError):
                line.send(_CLOSE)
        deadline = time.monotonic() + self._timeout
        for line, watcher in zip(self._lines, self._watchers, strict=True):
            watcher.join(max(0.0, deadline - time.monotonic()))  # ends when the other hangs up
            line.close()

    def _watch(self, line: _Line) -> None:
        try:
            message = line.receive()
            problem = message.data.decode() if message.kind == _FAILED else "it sent nonsense"
            raise HostLostError(f"{line.peer} failed: {problem}", remedy="start all hosts anew")
        except HostLostError as error:
            if not self._ended.is_set():
                self._lost = self._lost or error
                self._lost_event.set()


class Follower:
    """Another host's end."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        self._ended = threading.Event()
        _started(line.keep_alive, self._ended)

    def receive(self) -> bytes | None:
        """The next command; None when it is over. HostLostError where the leader is gone."""
        message = self._line.receive()
        return None if message.kind == _CLOSE else message.data

    def fail(self, problem: str) -> None:
        """Tell the leader that this host can't go on."""
        self._line.send(_FAILED, problem.encode())

    def close(self) -> None:
        """Hang up."""
        self._ended.set()
        self._line.close()


def _started(work: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def listen() -> socket.socket:
    """A socket at which followers can arrive, on a free port."""
    return socket.create_server(("", 0), family=socket.AF_INET)


def lead(
    listener: socket.socket, facts: Mapping[str, str], *, count: int, timeout: float
) -> Leader:
    """The leader's end, once all of ``count`` - 1 followers have come with the same facts.

    Raises:
        HostLostError: one doesn't come in time.
        ConfigError: one has other facts; it is told so, too.
    """
    listener.settimeout(timeout)
    lines: list[_Line] = []
    with listener, ExitStack() as undo:
        while len(lines) < count - 1:
            try:
                connection, _ = listener.accept()
            except TimeoutError as error:
                raise HostLostError(
                    f"{count - 1 - len(lines)} of {count} hosts didn't come within {timeout:g} s",
                    remedy="call fastgen_jax.follow with the same settings on every other host",
                ) from error
            line = _Line(connection, "a host", timeout)
            undo.callback(line.close)
            hello = json.loads(line.receive().data)
            line.peer = f"host {hello['index']}"
            _compare(line, facts, hello["facts"])
            lines.append(line)
        for line in lines:
            line.send(_HELLO)
        undo.pop_all()
    return Leader(lines, timeout)


def follow(address: str, index: int, facts: Mapping[str, str], *, timeout: float) -> Follower:
    """A follower's end, once the leader has accepted its facts.

    Raises:
        HostLostError: the leader isn't there, or doesn't answer.
        ConfigError: it has other facts.
    """
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection((host, int(port)), timeout=timeout)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise HostLostError(
                    f"host 0 can't be reached at {address}: {error}",
                    remedy="let the hosts reach each other's ports",
                ) from error
            time.sleep(0.1)
    line = _Line(connection, "host 0", timeout)
    with ExitStack() as undo:
        undo.callback(line.close)
        line.send(_HELLO, json.dumps({"index": index, "facts": dict(facts)}).encode())
        answer = line.receive()
        if answer.kind == _REFUSED:
            raise _differs(*json.loads(answer.data))
        undo.pop_all()
    return Follower(line)


def _compare(line: _Line, ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    for name in (*ours, *theirs):
        if ours.get(name) != theirs.get(name):
            line.send(_REFUSED, json.dumps([name, ours.get(name), theirs.get(name)]).encode())
            raise _differs(name, ours.get(name), theirs.get(name))


def _differs(name: str, leaders: str | None, followers: str | None) -> ConfigError:
    return ConfigError(
        f"host 0 has {leaders}, another host {followers}",
        field=name,
        value=leaders,
        remedy="start all hosts with the same model and settings",
    )

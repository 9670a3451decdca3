"""One thread that steps an engine while there is work, for callers on other threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from fastgen_jax.completion import Completion
from fastgen_jax.engine import Engine
from fastgen_jax.errors import EngineClosedError

# Hears on the engine's thread that its completion has grown or ended, or what ended the engine.
Listener = Callable[[Completion | BaseException], None]


class EngineThread:
    """Steps the engine while it has work and sleeps otherwise; everything else runs between steps.

    The engine isn't to be used by any other thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wake = threading.Condition()
        self._work: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._listeners: dict[Completion, Listener] = {}
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="fastgen-engine", daemon=True)
        self._thread.start()

    def call[Result](self, function: Callable[[], Result]) -> Future[Result]:
        """The result of a function that runs on the engine's thread, between two steps."""
        future: Future[Result] = Future()
        with self._wake:
            if self._is_closing:
                raise EngineClosedError("the engine was closed", remedy="build a new one")
            self._work.append((function, future))
            self._wake.notify()
        return future

    def listen(self, completion: Completion, listener: Listener) -> None:
        """Have a completion heard of until it ends; on the engine's thread."""
        self._listeners[completion] = listener

    def ignore(self, completion: Completion) -> None:
        """Have it heard of no more; on the engine's thread."""
        self._listeners.pop(completion, None)

    def close(self) -> None:
        """End the thread after the step that runs; who still listens hears of it."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while self._wait():
            for function, future in self._taken():
                _settle(function, future)
            if not self._engine.has_work:
                continue
            try:
                touched = self._engine.step()
            except EngineClosedError as error:
                self._tell_all(error)
                continue
            for completion in touched:
                self._tell(completion)
        closed = EngineClosedError("the engine was closed", remedy="build a new one")
        for _, future in self._taken():
            future.set_exception(closed)
        self._tell_all(closed)

    def _wait(self) -> bool:
        """Until there is something to do; False when it is time to end."""
        with self._wake:
            while not (self._work or self._engine.has_work or self._is_closing):
                self._wake.wait()
            return not self._is_closing

    def _taken(self) -> list[tuple[Callable[[], Any], Future[Any]]]:
        with self._wake:
            taken = list(self._work)
            self._work.clear()
        return taken

    def _tell(self, completion: Completion) -> None:
        listener = self._listeners.get(completion)
        if listener is None:
            return
        if completion.request.is_finished:
            del self._listeners[completion]
        listener(completion)

    def _tell_all(self, error: BaseException) -> None:
        listeners = list(self._listeners.values())
        self._listeners.clear()
        for listener in listeners:
            listener(error)


def _settle(function: Callable[[], Any], future: Future[Any]) -> None:
    # A caller that was cancelled meanwhile doesn't want it done.
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)

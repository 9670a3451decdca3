"""An engine in a process of its own: started once, told what to run, still while others run."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from benchmarks.workload import WorkloadRequest

IDLE_SHARE = 0.01  # of one core; an idle process above it is stopped while others run


class EngineProcess:
    """A process that speaks ``benchmarks.peers.protocol``; its log goes to a file or is dropped.

    It starts, and gets ready, when the object is made. ``pause`` and ``resume`` stop and continue
    it together with every process it has started.

    Raises:
        RuntimeError: the process ended; names the engine and its exit status.
    """

    def __init__(self, name: str, command: Sequence[str], *, log: Path | None = None) -> None:
        self.name = name
        self._stopped: list[psutil.Process] = []
        start = time.perf_counter()
        with Path(log or os.devnull).open("wb") as errors:
            # A session of its own: an interrupt at the terminal reaches this process alone,
            # which then ends the engines in order.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        try:
            self.ready = self._read("ready")
        except BaseException:
            self.close()
            raise
        self.startup_seconds = time.perf_counter() - start

    @property
    def pid(self) -> int:
        """Process id of the engine itself."""
        return self._process.pid

    @property
    def is_paused(self) -> bool:
        """True between ``pause`` and ``resume``."""
        return bool(self._stopped)

    def run(self, requests: Sequence[WorkloadRequest]) -> dict[str, Any]:
        """What the engine answered: "seconds", "output_token_ids", and what else it tells."""
        message = {
            "requests": [
                {"prompt_token_ids": request.prompt_token_ids, "max_tokens": request.max_tokens}
                for request in requests
            ]
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        return self._read("result")

    def cpu_seconds(self) -> float:
        """CPU time that the process and all it has started have used."""
        times = [process.cpu_times() for process in self._processes()]
        return sum(one.user + one.system for one in times)

    def idle_share(self, seconds: float = 2.0) -> float:
        """Cores it keeps busy while it has nothing to do, measured over some seconds."""
        before = self.cpu_seconds()
        time.sleep(seconds)
        return (self.cpu_seconds() - before) / seconds

    def pause(self) -> None:
        """Stop all its processes; pausing twice is harmless."""
        if not self.is_paused:
            self._stopped = self._processes()
            for process in self._stopped:
                process.suspend()

    def resume(self) -> None:
        """Let them go on."""
        for process in self._stopped:
            process.resume()
        self._stopped = []

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Let it run inside the block; one that was paused is paused again afterwards."""
        was_paused = self.is_paused
        self.resume()
        try:
            yield
        finally:
            if was_paused:
                self.pause()

    def close(self) -> None:
        """End it: its input ends, and after half a minute it is killed with all it started."""
        self.resume()
        processes = self._processes()
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        _, alive = psutil.wait_procs(processes, timeout=30)
        for process in alive:
            process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _processes(self) -> list[psutil.Process]:
        try:
            main = psutil.Process(self._process.pid)
            return [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _read(self, event: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise RuntimeError(f"{self.name} ended with status {status}; its log says why")
        message = json.loads(line)
        if message.pop("event") != event:
            raise RuntimeError(f"{self.name} said {line[:200]!r} where {event!r} was due")
        return message

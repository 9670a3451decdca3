"""Writing what happens in an engine to a file, a JSON line each."""

from __future__ import annotations

import json
import os
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastgen_jax.errors import ConfigError
from fastgen_jax.observe.events import Event, EventStream

_SECONDS_UNWRITTEN = 1.0
_BUFFER_BYTES = 1 << 20

encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def check_log_path(path: str | Path) -> None:
    """Nothing, where a log can be written; asked before anything that takes long.

    Raises:
        ConfigError: there is no such directory, or the file can't be opened.
    """
    try:
        with Path(path).open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


class EventLog(EventStream):
    """Writes a header, then every event, to a file that is whole when the engine is closed.

    Lines are buffered; those of more than a second ago are in the file whenever another is added,
    so a process that is killed loses a second of work. A log that is there already is kept beside
    the new one, with ``.old`` behind its name.

    Raises:
        ConfigError: the file can't be written.
    """

    def __init__(
        self,
        path: str | Path,
        header: Mapping[str, Any],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``header`` is the first line's content; ``clock`` says when to write to the file."""
        path = Path(path)
        try:
            if path.exists() and path.stat().st_size:
                os.replace(path, f"{path}.old")
            self._file = path.open("w", encoding="utf-8", newline="\n", buffering=_BUFFER_BYTES)
        except OSError as error:
            raise _unwritable(path, error) from error
        self._clock = clock
        self._close = weakref.finalize(self, self._file.close)  # at the interpreter's end too
        self._file.write(encode(dict(header)) + "\n")
        self.flush()

    def emit(self, event: Event) -> None:
        """Add a line."""
        self._file.write(encode(event) + "\n")
        if self._clock() - self._flushed >= _SECONDS_UNWRITTEN:
            self.flush()

    def flush(self) -> None:
        """Put all lines into the file."""
        self._file.flush()
        self._flushed = self._clock()

    def failed(self, problem: str) -> None:
        """A step failed: who looks into the file should find that."""
        super().failed(problem)
        self.flush()

    def closed(self) -> None:
        """The engine was closed."""
        super().closed()
        self._close()


def _unwritable(path: str | Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"can't be written: {error.strerror}",
        field="replay_log",
        value=str(path),
        remedy="name a file in a directory that is there and yours",
    )

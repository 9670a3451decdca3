"""Reading a log of events, one by one."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from fastgen_jax.errors import ReplayError
from fastgen_jax.observe.events import INPUTS, OUTPUTS

_KINDS = INPUTS | OUTPUTS


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEvent:
    """An event and where it stands; lines count from 1, and the header is the first."""

    line: int
    text: str
    data: dict[str, Any]

    @property
    def kind(self) -> str:
        """What happened."""
        return self.data["event"]


class LogReader:
    """The header and the events of a log, in order, without reading it all at once.

    A last line that broke off is left out, and ``is_cut`` then says so.

    Attributes:
        header: the first line's content.
        is_cut: True once a last line that broke off was met.
        num_bytes: size of the log.
        num_bytes_read: how much of it was looked at.

    Raises:
        ReplayError: the file isn't there, or isn't such a log.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.is_cut = False
        self.num_bytes_read = 0
        self._num_lines = 0
        self._ahead: deque[LoggedEvent] = deque()
        self._damage: ReplayError | None = None
        try:
            self.num_bytes = self.path.stat().st_size
            self._file: BinaryIO = self.path.open("rb")
        except OSError as error:
            raise ReplayError(
                f"can't be read: {error.strerror}", field="log", value=str(path)
            ) from error
        try:
            line = self._next_line()
            if line is None:
                raise self.damaged(1, "there is no header")
            self.header = line[1]
        except BaseException:
            self.close()
            raise

    def peek(self, ahead: int = 0) -> LoggedEvent | None:
        """The next event, or one behind it, without passing it; None behind the last.

        Raises:
            ReplayError: its line is damaged, or one was before.
        """
        if self._damage is not None:
            raise self._damage
        while len(self._ahead) <= ahead:
            found = self._next_line()
            if found is None:
                return None
            text, data = found
            if data.get("event") not in _KINDS:
                raise self.damaged(self._num_lines, f"there is no event {data.get('event')!r}")
            self._ahead.append(LoggedEvent(line=self._num_lines, text=text, data=data))
        return self._ahead[ahead]

    def take(self) -> LoggedEvent | None:
        """The next event, which is then passed; None behind the last."""
        event = self.peek()
        if event is not None:
            self._ahead.popleft()
        return event

    def damaged(self, line: int, problem: str) -> ReplayError:
        """An error that names the file and the line; nothing can be read after it."""
        self._damage = ReplayError(
            f"line {line} isn't a line of a log: {problem}", field="log", value=str(self.path)
        )
        return self._damage

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _next_line(self) -> tuple[str, dict[str, Any]] | None:
        raw = self._file.readline()
        if not raw:
            return None
        self._num_lines += 1
        self.num_bytes_read += len(raw)
        try:
            text = raw.decode()
            data = json.loads(text)
        except ValueError as error:
            if not raw.endswith(b"\n") and self._num_lines > 1:
                self.is_cut = True
                return None
            raise self.damaged(self._num_lines, str(error)) from error
        if not isinstance(data, dict):
            raise self.damaged(self._num_lines, "it holds no object")
        return text.rstrip("\r\n"), data

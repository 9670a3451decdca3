"""Stop strings, found in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastgen_jax.errors import InvalidRequestError


@dataclass(frozen=True, slots=True, kw_only=True)
class StopResult:
    """Text safe to show, and the stop string that ended it (None: the text goes on)."""

    text: str
    matched: str | None = None


class StopChecker:
    """Ends a text at the first character that completes a stop string.

    Where one character completes several, the one that starts earliest (the longest) wins. The
    result is the same however the text is cut into pieces. Without ``include_stop_str`` the longest
    tail that could still become a stop string is held back; with it nothing needs to be.
    """

    def __init__(self, stop: Sequence[str], include_stop_str: bool = False) -> None:
        """Raises InvalidRequestError for a stop string that is empty or no string."""
        for index, text in enumerate(stop):
            if not isinstance(text, str) or not text:
                raise InvalidRequestError(
                    "a stop string must be a non-empty string",
                    field=f"stop[{index}]",
                    value=text,
                    remedy="leave it out",
                )
        # The longest first: at equal ends that is the earliest start.
        ordered = sorted(dict.fromkeys(stop), key=len, reverse=True)
        self._matchers = [_PrefixMatcher(text) for text in ordered]
        self._include = include_stop_str
        self._held = ""
        self._matched: str | None = None

    def append(self, delta: str) -> StopResult:
        """The text that ``delta`` makes safe to show; after a match always empty."""
        if self._matched is not None:
            return StopResult(text="", matched=self._matched)
        buffer = self._held + delta
        for end in range(len(self._held), len(buffer)):
            found = self._advance(buffer[end])
            if found is not None:
                self._held, self._matched = "", found
                shown = end + 1 if self._include else end + 1 - len(found)
                return StopResult(text=buffer[:shown], matched=found)
        safe = len(buffer) - self._longest_prefix()
        self._held = buffer[safe:]
        return StopResult(text=buffer[:safe])

    def finish(self) -> StopResult:
        """The text held back, which no stop string ended; empty after a match."""
        held, self._held = self._held, ""
        return StopResult(text=held, matched=self._matched)

    def _advance(self, character: str) -> str | None:
        """Feeds one character to every matcher; the stop string it completes, if any."""
        found: str | None = None
        for matcher in self._matchers:
            if matcher.advance(character) and found is None:
                found = matcher.text
        return found

    def _longest_prefix(self) -> int:
        if self._include:
            return 0
        return max((matcher.matched for matcher in self._matchers), default=0)


class _PrefixMatcher:
    """Tracks the longest prefix of one string that the text ends with (Knuth-Morris-Pratt)."""

    __slots__ = ("_fallback", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._fallback = _borders(text)

    def advance(self, character: str) -> bool:
        """Whether ``character`` completes the string."""
        while self.matched and self.text[self.matched] != character:
            self.matched = self._fallback[self.matched - 1]
        if self.text[self.matched] == character:
            self.matched += 1
        return self.matched == len(self.text)


def _borders(text: str) -> list[int]:
    """For each prefix of ``text`` the length of its longest proper prefix that is its suffix."""
    borders = [0] * len(text)
    length = 0
    for index in range(1, len(text)):
        while length and text[index] != text[length]:
            length = borders[length - 1]
        if text[index] == text[length]:
            length += 1
        borders[index] = length
    return borders

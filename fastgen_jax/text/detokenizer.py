"""Text of a token stream, released as soon as its characters are complete."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from fastgen_jax.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
# A UTF-8 character has at most four bytes, so an incomplete one shows as at most three
# replacement characters (decoders differ: one for all its bytes, or one for each).
_LONGEST_INCOMPLETE = 3
# Prompt tokens kept as context; the first generated word needs just one with visible text.
_PROMPT_CONTEXT = 8
# Undecided tokens tolerated before looking for a character boundary among them.
_PENDING_LIMIT = 16


class IncrementalDetokenizer:
    """Turns token ids into text piece by piece; the pieces join to the decode of all ids.

    A step decodes the few tokens since the last character boundary plus the ones just before (the
    context), so that decoders which treat the start of a text differently (sentencepiece drops one
    space) see the middle of one. Its cost doesn't grow with the text.

    Text once released is never taken back. The one decoder this can differ from is ``tokenizers``'
    ByteFallback on invalid UTF-8: it replaces even the valid characters of a run of byte tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        prompt_token_ids: Sequence[int] = (),
    ) -> None:
        """Starts after ``prompt_token_ids``, whose own text is not returned."""
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._parts: list[str] = []
        self._finished = False
        last_first = islice(self._visible(reversed(prompt_token_ids)), _PROMPT_CONTEXT)
        self._window = list(last_first)[::-1]
        self._context_length = len(self._window)
        self._context_text = self._decode(self._window)
        self._released = 0  # characters of the pending tokens' text given out already

    @property
    def text(self) -> str:
        """All text released so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def append(self, token_ids: Sequence[int]) -> str:
        """The text that ``token_ids`` complete; may be empty. RuntimeError after ``finish``."""
        if self._finished:
            raise RuntimeError("append() after finish(): the stream has ended")
        self._window.extend(self._visible(token_ids))
        if len(self._window) == self._context_length:
            return ""
        decoded = self._decode(self._window)
        pending = self._pending_text(decoded)
        complete = _without_incomplete_tail(pending)
        delta = self._release(pending, complete)
        if pending and complete == len(pending):
            self._move_context(len(self._window))
        elif len(self._window) - self._context_length > _PENDING_LIMIT:
            self._split_pending(pending)
        return delta

    def finish(self) -> str:
        """The text still held back, incomplete characters as U+FFFD; the stream has ended."""
        if self._finished:
            return ""
        self._finished = True
        pending = self._pending_text(self._decode(self._window))
        return self._release(pending, len(pending))

    def _visible(self, token_ids: Iterable[int]) -> Iterable[int]:
        """The ids that can have text: neither skipped nor outside the vocabulary."""
        skipped = self._tokenizer.special_token_ids if self._skip_special_tokens else frozenset()
        for token_id in token_ids:
            if token_id not in skipped and self._tokenizer.id_to_token(token_id) is not None:
                yield token_id

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)

    def _pending_text(self, decoded: str) -> str:
        """What ``decoded``, the text of the window, adds to that of its context."""
        if decoded.startswith(self._context_text):
            return decoded[len(self._context_text) :]
        # A prompt may end within a character, which the first pending token then completes.
        settled = self._context_text.rstrip(_REPLACEMENT)
        if decoded.startswith(settled):
            return decoded[len(settled) :]
        return self._decode(self._window[self._context_length :])

    def _release(self, pending: str, end: int) -> str:
        delta = pending[self._released : end]
        self._released = max(self._released, end)
        if delta:
            self._parts.append(delta)
        return delta

    def _move_context(self, boundary: int) -> None:
        """Makes the pending tokens before ``boundary``, all released, the new context."""
        self._window = self._window[self._context_length :]
        self._context_length = boundary - self._context_length
        self._context_text = self._decode(self._window[: self._context_length])
        self._released = 0

    def _split_pending(self, pending: str) -> None:
        """Bounds the window in a stream of invalid bytes, where no boundary shows by itself.

        The last tokens hold at least four bytes, so whether a character spans the cut is settled:
        then, and just then, the two sides decode to something else than the whole.
        """
        for kept in range(_LONGEST_INCOMPLETE + 1, 2 * (_LONGEST_INCOMPLETE + 1)):
            boundary = len(self._window) - kept
            head = self._decode(self._window[self._context_length : boundary])
            if head + self._decode(self._window[boundary:]) == pending:
                released = self._released - len(head)
                if released >= 0:
                    self._move_context(boundary)
                    self._released = released
                    return


def _without_incomplete_tail(text: str) -> int:
    """The length of ``text`` up to which no later token can change it."""
    held = 0
    while held < min(_LONGEST_INCOMPLETE, len(text)) and text[-1 - held] == _REPLACEMENT:
        held += 1
    return len(text) - held

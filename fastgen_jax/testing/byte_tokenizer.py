"""A tokenizer without files: one id for each byte."""

from __future__ import annotations

from collections.abc import Sequence

_BYTES = 256
_SPECIAL_TOKENS = ("<bos>", "<eos>", "<pad>")


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of UTF-8 text, 256 is bos, 257 is eos and 258 is padding.

    Any text encodes, any byte id decodes; "<bos>" written in a text is just five bytes.
    """

    vocab_size: int = _BYTES + len(_SPECIAL_TOKENS)
    bos_token_id: int | None = 256
    eos_token_ids: tuple[int, ...] = (257,)
    pad_token_id: int = 258
    bos_token: str | None = "<bos>"
    eos_token: str | None = "<eos>"
    special_token_ids: frozenset[int] = frozenset({256, 257, 258})
    chat_template: str | None = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The UTF-8 bytes of ``text``, after bos with ``add_special_tokens``."""
        head = [256] if add_special_tokens else []
        return head + list(text.encode("utf-8"))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``token_ids``; invalid UTF-8 reads as U+FFFD, unknown ids as ""."""
        raw = b"".join(self._content(token_id, skip_special_tokens) for token_id in token_ids)
        return raw.decode("utf-8", errors="replace")

    def id_to_token(self, token_id: int) -> str | None:
        """ "<0x41>" for a byte, the name of a special token, or None."""
        if 0 <= token_id < _BYTES:
            return f"<0x{token_id:02X}>"
        if _BYTES <= token_id < self.vocab_size:
            return _SPECIAL_TOKENS[token_id - _BYTES]
        return None

    def _content(self, token_id: int, skip_special_tokens: bool) -> bytes:
        if 0 <= token_id < _BYTES:
            return bytes([token_id])
        token = None if skip_special_tokens else self.id_to_token(token_id)
        return (token or "").encode()

"""HTML and SVG as text, with everything that isn't markup escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape


class Markup(str):
    """Text that is markup already, and isn't escaped again."""

    __slots__ = ()


def element(name: str, *content: str, attributes: Mapping[str, object] | None = None) -> Markup:
    """An element; attributes and plain content are escaped, ``Markup`` is taken as it is."""
    given = "".join(
        f' {key}="{escape(_attribute(value)).replace("\n", "&#10;")}"'
        for key, value in (attributes or {}).items()
    )
    inner = joined(content)
    return Markup(f"<{name}{given}>{inner}</{name}>" if inner else f"<{name}{given}/>")


def joined(content: Iterable[str]) -> Markup:
    """Pieces one after the other, plain text escaped."""
    return Markup(
        "".join(part if isinstance(part, Markup) else escape(_printable(part)) for part in content)
    )


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> Markup:
    """An HTML table; numbers stand to the right."""
    body = [element("tr", *(_cell(value) for value in row)) for row in rows]
    if head:
        body.insert(0, element("tr", *(element("th", name) for name in head)))
    return element("table", *body)


def _cell(value: object) -> Markup:
    if isinstance(value, bool) or not isinstance(value, int | float):
        style = {"style": "text-align:left"}
        content = value if isinstance(value, Markup) else str(value)
        return element("td", content or "\N{NO-BREAK SPACE}", attributes=style)
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return element("td", text, attributes={"style": "text-align:right"})


def _attribute(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else _printable(value)


def _printable(value: object) -> str:
    """Without what XML can't hold at all: control characters and lone surrogates."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        c if c in "\t\n" or _is_xml(ord(c)) else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def _is_xml(code: int) -> bool:
    return 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code > 0xFFFF

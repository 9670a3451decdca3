"""SVG shapes by class; colours that hold on light and dark, for all kinds of colour vision."""

from __future__ import annotations

from fastgen_jax.markup import Markup, element

# After Okabe and Ito; what matters is told by height or place too, never by colour alone.
STYLE = """
.fg-timeline{font:11px system-ui,sans-serif}
.fg-timeline text{fill:currentColor}
.fg-title{font-size:13px;font-weight:600}
.fg-note{opacity:.75}
.fg-decode{fill:#3a86c8}
.fg-prefill{fill:#e69f00}
.fg-padding{fill:currentColor;fill-opacity:.14}
.fg-shape{fill:none;stroke:currentColor;stroke-opacity:.4;stroke-width:.8}
.fg-wait{fill:currentColor;fill-opacity:.4}
.fg-lost,.fg-preempted{fill:#cc79a7}
.fg-grid{stroke:currentColor;stroke-opacity:.12}
.fg-axis{stroke:currentColor;stroke-opacity:.5}
.fg-idle{fill:currentColor;fill-opacity:.06}
.fg-hit{fill:currentColor;fill-opacity:0}
.fg-bar:hover .fg-hit,.fg-bar:hover .fg-shape{fill:currentColor;fill-opacity:.15}
""".strip()
# A picture by itself can't take its colours from a page around it.
ALONE = """
.fg-timeline{color:#1f2328}
.fg-ground{fill:#fff}
@media (prefers-color-scheme:dark){.fg-timeline{color:#e6e8eb}.fg-ground{fill:#16181d}}
""".strip()


def rect(kind: str, left: float, top: float, width: float, height: float) -> Markup:
    """A rectangle."""
    return element(
        "rect",
        attributes={"class": kind, "x": left, "y": top, "width": width, "height": height},
    )


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    """A line."""
    return element("line", attributes={"class": kind, "x1": x1, "y1": y1, "x2": x2, "y2": y2})


def text(words: str, x: float, y: float, *, kind: str = "", anchor: str = "start") -> Markup:
    """A line of text whose baseline is at y."""
    attributes: dict[str, object] = {"x": x, "y": y}
    if kind:
        attributes["class"] = kind
    if anchor != "start":
        attributes["text-anchor"] = anchor
    return element("text", words, attributes=attributes)


def group(tooltip: str, *shapes: Markup, kind: str = "") -> Markup:
    """Shapes that show a text when they are pointed at."""
    attributes = {"class": kind} if kind else {}
    return element("g", element("title", tooltip), *shapes, attributes=attributes)

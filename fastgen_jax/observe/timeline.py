"""A picture of steps and requests over time, in SVG written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.markup import Markup, element, joined
from fastgen_jax.observe import words
from fastgen_jax.observe.budget_chart import HEIGHT, Bar, bars, draw_budget
from fastgen_jax.observe.drawing import ALONE, STYLE, group, line, rect, text
from fastgen_jax.observe.lanes import LANE, MOST_LANES, Lane, draw_lanes, lanes
from fastgen_jax.observe.lives import lives
from fastgen_jax.observe.records import HistoryWindow, RequestTrace
from fastgen_jax.observe.time_axis import TimeAxis

_WIDTH = 1000.0
_LEFT, _RIGHT = 66.0, _WIDTH - 14
_HEAD = 62.0  # title, legend
_BETWEEN = 52.0  # room for an axis and the next heading
_FOOT = 34.0
_LEGEND = (
    ("fg-decode", "decode"),
    ("fg-prefill", "prefill"),
    ("fg-padding", "padding"),
    ("fg-wait", "waiting"),
    ("fg-lost", "preempted, waiting again"),
)


class Timeline:
    """Steps and requests over time; a notebook shows it, ``save`` writes it.

    Above, how each step's places were used; below, a lane for each request, or for 40 of
    them. Steps
    and stretches that are too narrow to be seen are drawn together, which the picture says.
    """

    def __init__(self, window: HistoryWindow) -> None:
        self._window = window
        self._bars: list[Bar] = []
        self._lanes: list[Lane] = []
        self._num_requests = 0
        self._is_merged = False
        if window.steps:
            self._axis = TimeAxis.of(window.steps, _LEFT, _RIGHT)
            present = window.present
            self._num_requests = len(present)
            self._bars = bars(window.steps, self._axis)
            found = lives(window, _picked(present))
            self._lanes, self._is_merged = lanes(found, self._axis)

    def svg(self) -> str:
        """The picture as an SVG document, with a ground of its own, light or dark as the page."""
        ground = rect("fg-ground", 0, 0, _WIDTH, self._height)
        return '<?xml version="1.0" encoding="UTF-8"?>\n' + self._picture(ALONE, ground) + "\n"

    def html(self) -> str:
        """A page that needs nothing else."""
        style = (
            ":root{color-scheme:light dark}"
            "body{margin:24px auto;max-width:1100px;background:Canvas;color:CanvasText}"
            "svg{width:100%;height:auto}"
        )
        head = element(
            "head",
            Markup('<meta charset="utf-8">'),
            element("title", "Timeline"),
            element("style", Markup(style)),
        )
        page = element("html", head, element("body", self._picture()), attributes={"lang": "en"})
        return f"<!doctype html>\n{page}\n"

    def save(self, path: str | Path) -> None:
        """Write the picture (.svg) or the page (.html).

        Raises:
            InvalidRequestError: the name ends otherwise.
        """
        path = Path(path)
        if path.suffix not in (".svg", ".html"):
            raise InvalidRequestError(
                "isn't the name of a picture or a page",
                field="path",
                value=str(path),
                remedy="end it with .svg or .html",
            )
        made = self.svg() if path.suffix == ".svg" else self.html()
        path.write_text(made, encoding="utf-8")

    def _repr_html_(self) -> str:
        return element("div", self._picture(), attributes={"style": "overflow-x:auto"})

    @property
    def _height(self) -> float:
        if not self._bars:
            return _HEAD
        return self._lanes_top + LANE * len(self._lanes) + _FOOT

    @property
    def _lanes_top(self) -> float:
        return _HEAD + HEIGHT + _BETWEEN

    def _picture(self, style: str = "", ground: Markup | None = None) -> Markup:
        height = self._height
        attributes = {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "fg-timeline",
            "role": "img",
            "viewBox": f"0 0 {_WIDTH:.0f} {height:.0f}",
            "width": _WIDTH,
            "height": height,
        }
        content = [element("style", Markup(STYLE + style)), ground or Markup("")]
        return element("svg", *content, *self._content(), attributes=attributes)

    def _content(self) -> list[Markup]:
        if not self._bars:
            return [text("No step has run in what is kept.", _LEFT, 30, kind="fg-title")]
        bottom = self._height - _FOOT
        below = self._lanes_top
        return [
            text(self._title, _LEFT, 20, kind="fg-title"),
            *_legend(38),
            self._note(_HEAD - 6, "tokens of a step", self._bar_note),
            *self._idle(_HEAD, bottom),
            *self._ticks(_HEAD, _HEAD + HEIGHT),
            draw_budget(self._bars, self._axis, _HEAD),
            self._note(below - 8, "requests", self._lane_note),
            *self._ticks(below, bottom),
            draw_lanes(self._lanes, self._axis, below),
            text("seconds since the first step shown began", _RIGHT, bottom + 28, anchor="end"),
        ]

    @property
    def _title(self) -> str:
        steps = self._window.steps
        took = words.seconds(self._axis.end - self._axis.start)
        return (
            f"Steps {steps[0].index:,} to {steps[-1].index:,}, {took}, "
            f"{words.count(self._num_requests, 'request')}"
        )

    @property
    def _bar_note(self) -> str:
        num_merged = sum(len(bar.steps) for bar in self._bars if len(bar.steps) > 1)
        if not num_merged:
            return ""
        num_bars = sum(len(bar.steps) > 1 for bar in self._bars)
        return (
            f"{words.count(num_merged, 'step')} too narrow to tell apart stand in "
            f"{words.count(num_bars, 'bar')}, as means over their time"
        )

    @property
    def _lane_note(self) -> str:
        left_out = self._num_requests - len(self._lanes)
        notes: list[str] = []
        if left_out:
            notes.append(f"{len(self._lanes)} picked evenly, {left_out:,} more left out")
        if self._is_merged:
            notes.append("stretches too narrow to tell apart are drawn as one")
        return "; ".join(notes)

    def _note(self, y: float, heading: str, note: str) -> Markup:
        heading_text = text(heading, _LEFT, y)
        return joined([heading_text, text(note, _RIGHT, y, kind="fg-note", anchor="end")])

    def _idle(self, top: float, bottom: float) -> list[Markup]:
        """Bands where nothing ran for long, which are not to scale."""
        shapes: list[Markup] = []
        for piece in self._axis.pieces:
            if not piece.is_idle:
                continue
            took = words.seconds(piece.end - piece.start)
            band = rect("fg-idle", piece.left, top, piece.right - piece.left, bottom - top)
            shapes.append(group(f"nothing ran for {took} (not to scale)", band))
            middle = (piece.left + piece.right) / 2
            shapes.append(text(f"idle {took}", middle, top + HEIGHT + 30, anchor="middle"))
        return shapes

    def _ticks(self, top: float, bottom: float) -> list[Markup]:
        shapes = [line("fg-axis", self._axis.left, bottom, self._axis.right, bottom)]
        for x, label in self._axis.ticks():
            shapes.append(line("fg-grid", x, top, x, bottom))
            shapes.append(line("fg-axis", x, bottom, x, bottom + 4))
            shapes.append(text(label, x, bottom + 15, anchor="middle"))
        return shapes


def _picked(traces: Sequence[RequestTrace]) -> list[RequestTrace]:
    """As many as there are lanes, evenly from the first to the last."""
    if len(traces) <= MOST_LANES:
        return list(traces)
    return [traces[i * (len(traces) - 1) // (MOST_LANES - 1)] for i in range(MOST_LANES)]


def _legend(y: float) -> list[Markup]:
    shapes: list[Markup] = []
    x = _LEFT
    for kind, label in _LEGEND:
        height = 3.0 if kind in ("fg-wait", "fg-lost") else 10.0
        shapes.append(rect(kind, x, y - 4 - height / 2, 14, height))
        shapes.append(text(label, x + 19, y))
        x += 38 + 5.6 * len(label)
    return shapes

"""The picture: well-formed, true to the steps, and safe whatever ids and texts hold."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.observe.budget_chart import bars
from fastgen_jax.observe.lanes import MOST_LANES, lanes
from fastgen_jax.observe.lives import lives
from fastgen_jax.observe.step_history import StepHistory
from fastgen_jax.observe.time_axis import TimeAxis
from tests.observe.stepped import Stepped, random_run

SVG = "{http://www.w3.org/2000/svg}"
MOST_BYTES = 2_000_000


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.encode())


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("seed", range(6))
def test_bars_fill_the_axis_and_stand_for_every_step(seed: int) -> None:
    steps = random_run(seed).history.window().steps
    axis = TimeAxis.of(steps, 50, 950)
    found = bars(steps, axis)
    ran = [step for step in steps if not step.plan.is_empty]
    assert [step for bar in found for step in bar.steps] == ran
    assert not any(piece.is_idle for piece in axis.pieces)
    assert sum(bar.width for bar in found) == pytest.approx(900)
    for bar in found:
        if len(bar.steps) == 1:
            (step,) = bar.steps
            assert bar.shape == pytest.approx(step.shape.num_tokens)
            assert bar.decode == pytest.approx(step.plan.num_decode_tokens)
    # An area is a number of places in time, however steps are drawn together.
    scale = 900 / (axis.end - axis.start)
    area = sum(bar.width * bar.shape for bar in found)
    assert area == pytest.approx(scale * sum(s.seconds * s.shape.num_tokens for s in ran))


@pytest.mark.parametrize("seed", range(6))
def test_lanes_go_on_without_a_break_and_end_with_the_request(seed: int) -> None:
    window = random_run(seed, max_chained_steps=2).history.window()
    axis = TimeAxis.of(window.steps, 0, 100_000)  # nothing is too narrow
    found, is_merged = lanes(lives(window, window.present), axis)
    assert not is_merged
    for lane, trace in zip(found, window.present, strict=True):
        assert len(lane.preemptions) == trace.request.num_preemptions
        for before, after in zip(lane.segments, lane.segments[1:], strict=False):
            assert before.end == pytest.approx(after.start)
        if lane.segments:
            assert lane.segments[0].start == pytest.approx(trace.request.arrival_time)
            assert lane.segments[-1].end <= trace.end_time + 1e-9


def test_a_long_idle_time_is_cut_short_and_said() -> None:
    made = Stepped()
    made.submit(9, 9)
    made.run()
    made.clock.now += 3600
    made.submit(9, 9)
    made.run()
    svg = made.history.timeline().svg()
    assert "idle 60.0 min" in texts(svg)
    axis = TimeAxis.of(made.history.window().steps, 0, 1000)
    assert [piece.is_idle for piece in axis.pieces] == [False, True, False]
    assert axis.pieces[1].right - axis.pieces[1].left < 50
    assert axis.right == pytest.approx(1000)


def test_thousands_of_steps_stay_small_and_the_picture_says_so() -> None:
    made = Stepped(max_steps=20_000, max_num_seqs=8, num_blocks=40)
    for _ in range(400):
        made.submit(20, 40)
    made.run()
    assert len(made.history) > 2000
    svg = made.history.timeline().svg()
    assert len(svg.encode()) < MOST_BYTES
    said = " ".join(texts(svg))
    assert "too narrow to tell apart stand in" in said
    assert f"{MOST_LANES} picked evenly, 360 more left out" in said
    part = made.history.timeline(first=100, last=120).svg()
    assert "Steps 100 to 120" in texts(part)[0]
    assert "narrow" not in " ".join(texts(part))


def test_ids_are_escaped_wherever_they_stand() -> None:
    made = Stepped()
    made.submit(3, 4)
    made.step(2)
    (trace,) = made.history.window().requests
    trace.request.request_id = '<script>"&\x00'
    timeline = made.history.timeline()
    assert any(
        '<script>"&\N{REPLACEMENT CHARACTER}' in (e.text or "")
        for e in parsed(timeline.svg()).iter()
    )
    for made_text in (timeline.svg(), timeline.html(), timeline._repr_html_()):
        assert "<script>" not in made_text


def test_an_empty_history_has_a_picture_too() -> None:
    assert texts(StepHistory().timeline().svg()) == ["No step has run in what is kept."]


def test_one_step_in_flight_has_a_picture() -> None:
    made = Stepped()
    made.submit(3, 4)
    made.step()
    assert parsed(made.history.timeline().svg()) is not None


def test_saving(tmp_path: Path) -> None:
    timeline = random_run(2).history.timeline()
    timeline.save(tmp_path / "steps.svg")
    timeline.save(str(tmp_path / "steps.html"))
    assert parsed((tmp_path / "steps.svg").read_text(encoding="utf-8")).tag == f"{SVG}svg"
    page = (tmp_path / "steps.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")  # needs nothing else
    with pytest.raises(InvalidRequestError, match=r"\.svg or \.html"):
        timeline.save(tmp_path / "steps.png")


def test_every_bar_says_what_it_was() -> None:
    made = Stepped(enable_prefix_caching=False)
    made.submit(20, 3)
    made.run()
    svg = made.history.timeline().svg()
    titles = [element.text or "" for element in parsed(svg).iter(f"{SVG}title")]
    assert any(
        title.startswith("step 0: 1.60 s\n0 decode, 16 prefill\nand 0 padding") for title in titles
    )
    assert "request 0: 16 prompt tokens from position 0 in step 0, 1.60 s" in titles
    assert "request 0: decoded 2 tokens in steps 2 to 3, 0.80 s" in titles

"""Outputs, metrics and tables as a notebook shows them: nothing of a model's text is markup."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from fastgen_jax import CompletionOutput, FinishReason, Logprob, RequestMetrics, RequestOutput
from fastgen_jax.markup import Markup, element, table
from fastgen_jax.testing import fake_engine

EVIL = "<script>alert('x')</script> & \"q\""


def output(**fields: object) -> RequestOutput:
    completion = {
        "index": 0,
        "text": EVIL,
        "token_ids": (5,),
        "cumulative_logprob": None,
        "logprobs": None,
        "finish_reason": FinishReason.STOP,
        "stop_reason": EVIL,
        "error": None,
        "metrics": RequestMetrics(
            arrival_time=1.0,
            first_scheduled_time=1.0,
            first_token_time=1.5,
            finished_time=2.0,
            num_cached_tokens=0,
            num_preemptions=0,
        ),
        **fields,
    }
    return RequestOutput(
        request_id=EVIL,
        prompt=EVIL,
        prompt_token_ids=(1,),
        prompt_logprobs=None,
        outputs=(CompletionOutput(**completion),),
    )


def shown(given: RequestOutput) -> ElementTree.Element:
    html = given._repr_html_()
    assert "<script>" not in html
    return ElementTree.fromstring(html)


def test_text_is_shown_escaped() -> None:
    assert "".join(shown(output()).itertext()).count(EVIL) == 3  # id, prompt, text
    assert EVIL in "".join(shown(output(error=EVIL)).itertext())


def test_tokens_are_coloured_the_more_the_less_likely_they_were() -> None:
    likely = {5: Logprob(0.0, 1, EVIL), 6: Logprob(-9.0, 2, "b")}
    unlikely = {6: Logprob(-3.0, 4, "b"), 5: Logprob(-0.1, 1, EVIL)}
    spans = list(shown(output(token_ids=(5, 6), logprobs=(likely, unlikely))).iter("span"))
    assert [span.text for span in spans] == [EVIL, "b"]
    assert spans[0].attrib["style"].endswith(",0.00)")
    assert spans[1].attrib["style"].endswith(",0.71)")
    assert spans[1].attrib["title"].splitlines()[0] == "'b' 5.0%, rank 4"
    assert spans[1].attrib["title"].splitlines()[1].startswith("1. ")


def test_tokens_without_a_tokenizer_are_numbers() -> None:
    spans = list(shown(output(text="", logprobs=({5: Logprob(-1.0, 1, None)},))).iter("span"))
    assert spans[0].text == "[5] "
    assert "5" in "".join(shown(output(text="")).itertext())


def test_metrics_are_a_table_of_plain_numbers() -> None:
    engine = fake_engine()
    metrics = engine.metrics()
    flat = metrics.as_dict()
    assert all(type(value) in (int, float) for value in flat.values())
    assert flat["reasons.no_row"] == 0
    assert flat["padding_fraction"] == 0.0
    cells = [cell.text for cell in ElementTree.fromstring(metrics._repr_html_()).iter("td")]
    assert cells[0::2] == list(flat)


def test_markup_escapes_all_but_markup() -> None:
    assert element("b", "<i>", Markup("<i/>"), attributes={"title": '"'}) == (
        '<b title="&quot;">&lt;i&gt;<i/></b>'
    )
    assert "\N{REPLACEMENT CHARACTER}" in element("b", "\x00\ud800")
    assert table([("a", 1234)], head=("<", ">")).count("<t") == 7

"""Sentences about requests whose fate is scripted."""

from __future__ import annotations

import pytest

from fastgen_jax.errors import InvalidRequestError
from fastgen_jax.observe.words import REASON_WORDS, because, chunks, named, seconds
from fastgen_jax.scheduling.plan import Reason
from tests.observe.stepped import Stepped, random_run


def told(made: Stepped, request_id: str) -> list[str]:
    return list(made.history.explain(request_id).sentences)


def test_one_that_waits_for_a_row() -> None:
    made = Stepped(max_num_seqs=1, enable_prefix_caching=False)
    first, second = made.submit(20, 3), made.submit(4, 2)
    made.run()
    assert told(made, first) == [
        "Request 0 arrived before step 0 with 20 prompt tokens, for at most 3 output tokens.",
        "Its prompt was computed in 2 chunks of 16 and 4 tokens, in steps 0 to 1.",
        "Its first token came 3.20 s after its arrival, out of step 1.",
        "After that it got 2 tokens, 0.10 s apart on average.",
        "It ended 3.40 s after its arrival with 3 output tokens: it was allowed no more.",
    ]
    assert told(made, second)[1:3] == [
        (
            "It waited 1 step (0 s) because the step's tokens were all given out, then 4 steps "
            "(3.40 s) because every row was taken."
        ),
        "Its prompt was computed in one chunk of 4 tokens, in step 5.",
    ]


def test_a_slow_gap_names_the_prompt_that_caused_it() -> None:
    made = Stepped(enable_prefix_caching=False)
    slowed = made.submit(3, 8)
    made.step(3)
    made.submit(28, 1)
    made.run()
    assert told(made, slowed)[3:5] == [
        "After that it got 7 tokens, 0.74 s apart on average.",
        (
            "The slowest gap was 1.60 s, before output token 4: step 3 took 1.60 s since it "
            "carried 15 prompt tokens of request 1 beside 1 decode."
        ),
    ]


def test_one_that_is_preempted() -> None:
    made = Stepped(num_blocks=8, enable_prefix_caching=False)
    made.submit(7, 10)
    victim = made.submit(7, 10)
    made.run()
    assert told(made, victim)[3:8] == [
        (
            "In step 6 it was preempted because it needed a block and had to give way itself, and "
            "lost 12 computed tokens."
        ),
        "It waited 4 steps (1.60 s) because the cache had too few free blocks.",
        "It came back in step 11 and computed 12 again, in one chunk of 13 tokens.",
        "After that it got 9 tokens, 0.71 s apart on average.",
        "The slowest gap was 3.20 s, before output token 7: it was preempted in between.",
    ]


def test_one_that_finds_its_prompt_in_the_cache() -> None:
    made = Stepped()
    made.submit(12, 2)
    made.run()
    second = made.submit(12, 2)
    made.run()
    assert told(made, second)[1:] == [
        "It found 8 of its 12 prompt tokens in the prefix cache.",
        "The rest of its prompt was computed in one chunk of 4 tokens, in step 3.",
        "Its first token came 0.40 s after its arrival, out of step 3.",
        "After that it got one token, 0.40 s later.",
        "It ended 0.80 s after its arrival with 2 output tokens: it was allowed no more.",
    ]


def test_all_completions_of_a_prompt_or_one() -> None:
    made = Stepped()
    made.submit(3, 2, n=2)
    made.run()
    both = told(made, "0")
    assert both == told(made, "0-0") + told(made, "0-1")
    assert both[0].startswith("Request 0-0 ")


@pytest.mark.parametrize(
    ("params", "end"),
    [
        ({"stop_token_ids": [7]}, "with 1 output token: it drew the stop token 7."),
        ({"stop": ["\x07\x07"]}, "it wrote the stop string '\\x07\\x07'."),
    ],
)
def test_why_it_ended(params: dict[str, object], end: str) -> None:
    made = Stepped()
    stopped = made.submit(3, 20, **params)
    made.run()
    assert told(made, stopped)[-1].endswith(end)


def test_an_aborted_one_and_a_live_one() -> None:
    made = Stepped()
    aborted, live = made.submit(3, 20), made.submit(3, 20)
    made.step(3)
    made.engine.abort(made.history.window().requests[0].request)
    assert told(made, aborted)[-1].endswith("with 2 output tokens: its caller aborted it.")
    assert told(made, live)[-1] == "It hasn't ended yet; it has 2 output tokens."


def test_a_pause_of_the_caller_is_not_blamed_on_the_step() -> None:
    made = Stepped()
    paused = made.submit(3, 6)
    made.step(3)
    made.clock.now += 50
    made.run()
    assert "The slowest gap was 50.4 s" in str(made.history.explain(paused))
    assert "nobody stepped the engine for 50.0 s" in str(made.history.explain(paused))


def test_what_lies_before_the_window_is_said_to_be_forgotten() -> None:
    made = Stepped(max_steps=4)
    long = made.submit(3, 20)
    made.run()
    sentences = told(made, long)
    assert sentences[1] == "The history begins at step 17; what it did before is forgotten."
    assert sentences[2].startswith("In the steps that are kept it got")
    assert sentences[-1].endswith("with 20 output tokens: it was allowed no more.")


@pytest.mark.parametrize("request_id", ["7", "0-0", "", "00"])
def test_an_unknown_request_is_refused_with_the_remedy(request_id: str) -> None:
    made = Stepped()
    made.submit(3, 2)
    made.run()
    with pytest.raises(InvalidRequestError, match=r"EngineConfig\.step_history") as caught:
        made.history.explain(request_id)
    assert caught.value.field == "request_id"
    assert "'0' to '0'" in str(caught.value)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_words(reason: Reason) -> None:
    assert because(reason) == f"because {REASON_WORDS[reason]}"
    assert len(set(REASON_WORDS.values())) == len(Reason)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happened_can_be_told(seed: int) -> None:
    made = random_run(seed, max_chained_steps=1 + seed % 3)
    for trace in made.history.window().requests:
        sentences = told(made, trace.request_id)
        request = trace.request
        assert f"with {request.num_output_tokens} output token" in sentences[-1]
        lost = sum("was preempted because" in sentence for sentence in sentences)
        assert lost == request.num_preemptions
        assert sum("came back" in s for s in sentences) <= lost


def test_words() -> None:
    assert [seconds(value) for value in (0.0, 2e-5, 0.0042, 0.031, 0.31, 12.34, 500.0)] == [
        "0 s",
        "20 µs",
        "4.2 ms",
        "31 ms",
        "0.31 s",
        "12.3 s",
        "8.3 min",
    ]
    assert chunks([5, 5]) == "2 chunks of 5 tokens"
    assert chunks([64, 64, 64, 20]) == "4 chunks of 64 tokens, the last of 20"
    assert chunks([1, 2, 3]) == "3 chunks of 1, 2 and 3 tokens"
    assert named(["1"]) == "request 1"
    assert named([str(i) for i in range(9)]) == "requests 0, 1, 2, 3 and 5 others"


def test_an_explanation_shows_no_markup_of_an_id() -> None:
    made = Stepped()
    made.submit(3, 2)
    (trace,) = made.history.window().requests
    trace.request.request_id = "<script>"
    shown = made.history.explain("<script>")
    assert "<script>" in str(shown)
    assert "<script>" not in shown._repr_html_()

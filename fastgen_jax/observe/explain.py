"""What became of a request, and why, in plain sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fastgen_jax.markup import element
from fastgen_jax.observe import words
from fastgen_jax.observe.gaps import slowest_gap
from fastgen_jax.observe.lives import Moment, RequestLife, lives, wait_runs
from fastgen_jax.observe.records import HistoryWindow, RequestTrace
from fastgen_jax.observe.stays import Stay, stays
from fastgen_jax.request import FinishReason, Request
from fastgen_jax.scheduling.plan import Reason

_MOST_WAITS = 3  # told one by one; more are summed up by reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Sentences about a request; ``print`` shows them, and a notebook lists them.

    Attributes:
        request_id: what was asked for.
        sentences: in order of time; of several completions, one after the other.
    """

    request_id: str
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        """A sentence a line."""
        return "\n".join(self.sentences)

    def _repr_html_(self) -> str:
        return element("ul", *(element("li", sentence) for sentence in self.sentences))


def explain(window: HistoryWindow, traces: Sequence[RequestTrace], request_id: str) -> Explanation:
    """Everything the window tells about these requests."""
    sentences = [
        sentence for life in lives(window, traces) for sentence in _tell(life, window.is_cut)
    ]
    return Explanation(request_id=request_id, sentences=tuple(sentences))


def _tell(life: RequestLife, is_cut: bool) -> list[str]:
    told = [_arrival(life)]
    if is_cut and not life.is_whole:
        told.append(
            f"The history begins at step {life.steps[0].index}; what it did before is forgotten."
        )
    since = life.trace.request.arrival_time if life.is_whole else None
    all_stays = stays(life)
    lost = 0
    for number, stay in enumerate(all_stays):
        told += _waited(life, stay.waits, since)
        if number:
            told += _came_back(life, stay, lost)
        else:
            told += _prompt(life, stay)
        told += _paused(life, stay.pauses)
        if not number:
            told += _first_token(life)
        if stay.preempted is not None:
            lost = stay.num_computed
            told.append(_preemption(life, stay.preempted, lost))
            since = None
    return [*told, *_pace(life), _end(life)]


def _arrival(life: RequestLife) -> str:
    request = life.trace.request
    return (
        f"Request {request.request_id} arrived before step {life.trace.first_step} with "
        f"{words.count(request.num_prompt_tokens, 'prompt token')}, for at most "
        f"{words.count(request.max_output_tokens, 'output token')}."
    )


def _waited(life: RequestLife, waits: Sequence[Moment], since: float | None) -> list[str]:
    if not waits:
        return []
    told = list(wait_runs(waits))
    spans: list[tuple[Moment, int, float]] = []
    for index, (first, number) in enumerate(told):
        later = told[index + 1][0].position if index + 1 < len(told) else waits[-1].position + 1
        begin = life.steps[first.position].plan.time if index or since is None else since
        spans.append((first, number, _time_of(life, later) - begin))
    if len(spans) > _MOST_WAITS:
        return [_summed_up(spans)]
    parts = [
        f"{words.count(number, 'step')} ({words.seconds(took)})"
        f"{' behind others in the queue' * first.is_behind} {words.because(first.reason)}"
        for first, number, took in spans
    ]
    return [f"It waited {', then '.join(parts)}."]


def _summed_up(spans: Sequence[tuple[Moment, int, float]]) -> str:
    by_reason: Counter[Reason | None] = Counter()
    for first, number, _ in spans:
        by_reason[first.reason] += number
    took = words.seconds(sum(span[2] for span in spans))
    num_behind = sum(number for first, number, _ in spans if first.is_behind)
    behind = f", {num_behind:,} of them behind others in the queue" if num_behind else ""
    parts = [f"{number:,} {words.because(reason)}" for reason, number in by_reason.items()]
    total = words.count(by_reason.total(), "step")
    return f"It waited {total} ({took}){behind}: {words.listed(parts)}."


def _time_of(life: RequestLife, position: int) -> float:
    """When the plan was made, or what comes nearest to that after the last one."""
    steps = life.steps
    if position < len(steps):
        return steps[position].plan.time
    end = life.trace.end_time
    return steps[-1].plan.time if end is None else end


def _prompt(life: RequestLife, stay: Stay) -> list[str]:
    if not stay.chunks or not life.is_whole:
        return []
    request = life.trace.request
    told: list[str] = []
    if stay.num_cached:
        told.append(
            f"It found {stay.num_cached:,} of its {request.num_prompt_tokens:,} prompt tokens in "
            "the prefix cache."
        )
    is_done = stay.num_computed >= request.num_prompt_tokens
    what = "The rest of its prompt" if stay.num_cached else "Its prompt"
    verb = "was computed" if is_done else "has been computed so far"
    return [*told, f"{what} {verb} {_chunks(life, stay)}."]


def _chunks(life: RequestLife, stay: Stay) -> str:
    first, last = stay.chunks[0].position, stay.chunks[-1].position
    where = words.steps(life.steps[first].index, life.steps[last].index)
    return f"in {words.chunks([chunk.num_tokens for chunk in stay.chunks])}, {where}"


def _paused(life: RequestLife, pauses: Sequence[Moment]) -> list[str]:
    """Plans that passed it by while it ran, by reason."""
    if not pauses:
        return []
    by_reason = Counter(moment.reason for moment in pauses)
    parts = [
        f"{words.count(number, 'step')} left it out {words.because(reason)}"
        for reason, number in by_reason.items()
    ]
    return [f"Meanwhile {words.listed(parts)}."]


def _first_token(life: RequestLife) -> list[str]:
    tokens = life.token_times
    if not tokens or tokens[0].number != 1:
        return []
    took = words.seconds(tokens[0].time - life.trace.request.arrival_time)
    index = life.steps[tokens[0].position].index
    return [f"Its first token came {took} after its arrival, out of step {index}."]


def _preemption(life: RequestLife, moment: Moment, lost: int) -> str:
    why = (
        "it needed a block and had to give way itself"
        if moment.winner == life.trace.request_id
        else f"request {moment.winner} needed a block"
    )
    index = life.steps[moment.position].index
    return (
        f"In step {index} it was preempted because {why}, and lost "
        f"{words.count(lost, 'computed token')}."
    )


def _came_back(life: RequestLife, stay: Stay, lost: int) -> list[str]:
    first = stay.first_run
    if first is None:
        return []
    back = f"It came back in step {life.steps[first.position].index}"
    if not stay.chunks or not lost:  # all is in the cache, or what was lost lies before the window
        return [f"{back}."]
    again = sum(max(min(c.start + c.num_tokens, lost) - c.start, 0) for c in stay.chunks)
    found = f", found {stay.num_cached:,} of them in the prefix cache" if stay.num_cached else ""
    chunks = words.chunks([chunk.num_tokens for chunk in stay.chunks])
    return [f"{back}{found} and computed {again:,} again, in {chunks}."]


def _pace(life: RequestLife) -> list[str]:
    tokens = life.token_times
    if len(tokens) < 2:
        return []
    took = tokens[-1].time - tokens[0].time
    mean = words.seconds(took / (len(tokens) - 1))
    gap = slowest_gap(life)
    beginning = "After that" if tokens[0].number == 1 else "In the steps that are kept"
    if len(tokens) == 2:
        return [f"{beginning} it got one token, {mean} later."]
    told = [f"{beginning} it got {len(tokens) - 1:,} tokens, {mean} apart on average."]
    return told if gap is None else [*told, gap]


def _end(life: RequestLife) -> str:
    request, end = life.trace.request, life.trace.end_time
    so_far = words.count(request.num_output_tokens, "output token")
    if end is None:
        return f"It hasn't ended yet; it has {so_far}."
    took = words.seconds(end - request.arrival_time)
    return f"It ended {took} after its arrival with {so_far}: {_why_ended(request)}."


def _why_ended(request: Request) -> str:
    match request.finish_reason:
        case FinishReason.STOP if isinstance(request.stop_reason, str):
            return f"it wrote the stop string {request.stop_reason!r}"
        case FinishReason.STOP if request.stop_reason is not None:
            return f"it drew the stop token {request.stop_reason}"
        case FinishReason.STOP:
            return "it drew the token that ends a text"
        case FinishReason.LENGTH:
            is_full = request.num_output_tokens >= request.max_output_tokens
            return "it was allowed no more" if is_full else "its answer was complete"
        case FinishReason.ABORT:
            return "its caller aborted it"
        case _:
            return f"it failed ({request.error})"

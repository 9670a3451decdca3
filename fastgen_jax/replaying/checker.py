"""The observer that holds what an engine does against a log."""

from __future__ import annotations

from collections.abc import Sequence

from fastgen_jax.observe.event_log import encode
from fastgen_jax.observe.events import Event, EventStream
from fastgen_jax.observe.log_reader import LoggedEvent, LogReader
from fastgen_jax.replaying.difference import Difference, difference_of, difference_of_kinds
from fastgen_jax.request import Request
from fastgen_jax.scheduling.plan import StepPlan


class FirstDifference(Exception):
    """Ends the step in which the replay left the log."""


class Checker(EventStream):
    """Compares each event with the log's next; raises FirstDifference where it isn't that.

    Shapes that differ raise nothing: an engine tells them while it is being built.

    Attributes:
        difference: the first one; nothing is compared after it.
        step: index of the last plan; None before the first.
        num_events, num_tokens, num_requests, num_preemptions: compared so far.
        live: the requests that haven't ended, by their ids.
    """

    def __init__(self, log: LogReader) -> None:
        self.difference: Difference | None = None
        self.step: int | None = None
        self.num_events = 0
        self.num_tokens = 0
        self.num_requests = 0
        self.num_preemptions = 0
        self.live: dict[str, Request] = {}
        self._log = log
        self._rows: Sequence[str] = ()
        self._is_open = True

    def stop(self) -> None:
        """Compare nothing from now on."""
        self._is_open = False

    def submitted(self, requests: Sequence[Request]) -> None:
        """A call of ``submit`` queued these."""
        super().submitted(requests)
        self.live |= {request.request_id: request for request in requests}
        self.num_requests += len(requests)

    def ended(self, request: Request, now: float) -> None:
        """A request has ended."""
        self.live.pop(request.request_id, None)
        super().ended(request, now)

    def planned(self, plan: StepPlan) -> None:
        """A plan was made."""
        if self._is_open:
            self.step = plan.step_index
            super().planned(plan)
            self.num_preemptions += len(plan.preempted)

    def read(self, plan: StepPlan, step: int, token_ids: Sequence[int], now: float) -> None:
        """The results of a step came."""
        if self._is_open:
            self._rows = [request.request_id for request in plan.rows.requests]
            super().read(plan, step, token_ids, now)

    def emit(self, event: Event) -> None:
        """Compare with the log's next event."""
        if not self._is_open:
            return
        logged = self._log.peek()
        if logged is None:
            # A log that broke off may lack what followed its last line.
            self.stop()
            return
        text = encode(event)
        if logged.text != text:
            self._compare(logged, event)
            if self.difference is not None:
                return
        self._log.take()
        self.num_events += 1
        if event["event"] == "tokens":
            self.num_tokens += sum(token is not None for token in event["tokens"])

    def reject(self, logged: LoggedEvent, found: str) -> None:
        """The log's event didn't happen; ``found`` says what did."""
        self._end(difference_of_kinds(logged, found, step=self.step))

    def _compare(self, logged: LoggedEvent, event: Event) -> None:
        step = event.get("step", self.step)
        difference = difference_of(logged, event, step=step, rows=self._rows)
        if difference is not None:
            self._end(difference, may_raise=event["event"] != "shapes")

    def _end(self, difference: Difference, *, may_raise: bool = True) -> None:
        self.difference = difference
        self.stop()
        if may_raise:
            raise FirstDifference(str(difference))

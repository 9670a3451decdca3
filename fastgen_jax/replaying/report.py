"""What a replay found."""

from __future__ import annotations

from dataclasses import dataclass

from fastgen_jax.replaying.difference import Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """How far a replay came, and what it found there.

    Attributes:
        num_events: lines of the log that the replay did in the same way.
        num_steps: plans among them.
        num_requests: completions that were submitted.
        num_preemptions: of requests by others.
        num_tokens: drawn tokens, those after an end left out.
        seconds: what replaying took, without loading the model.
        difference: the first one; None: there is none.
        failure: why the logged run's engine failed, and the replay's as well; None: it didn't.
        is_cut: True where the log's last line broke off; the replay went up to there.
        is_simulated: True where the tokens were the log's, not a model's.
        notes: what else somebody should know, a sentence each.
    """

    num_events: int
    num_steps: int
    num_requests: int
    num_preemptions: int
    num_tokens: int
    seconds: float
    difference: Difference | None
    failure: str | None
    is_cut: bool
    is_simulated: bool
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A few lines for people."""
        how = "in simulation, with the log's tokens" if self.is_simulated else "by the model"
        lines = [f"Replayed {how}: {self._counts}", *self.notes]
        if self.failure is not None:
            lines.append(f"The logged run failed, and so did the replay: {self.failure}")
        if self.is_cut:
            lines.append("The log's last line is incomplete: the run was cut off there")
        if self.difference is None:
            lines.append("No difference")
        else:
            lines.append(f"First difference: {self.difference}")
        return "\n".join(lines)

    @property
    def _counts(self) -> str:
        return (
            f"{self.num_steps} steps, {self.num_requests} requests, {self.num_preemptions} "
            f"preemptions, {self.num_tokens} tokens; {self.num_events} events in "
            f"{self.seconds:.2f} s"
        )

"""What ``fastgen replay`` does."""

from __future__ import annotations

import sys

from fastgen_jax.replaying.replay import replay


def run_replay(log: str, *, simulate: bool, model: str | None, until_step: int | None) -> None:
    """Replay with a progress bar on standard error, print the report.

    Raises:
        SystemExit: with status 1, when there is a difference.
        FastGenError: the log can't be replayed.
    """
    report = replay(
        log,
        simulate=simulate,
        model=model,
        until_step=until_step,
        show_progress=sys.stderr.isatty(),
    )
    print(report)
    if report.difference is not None:
        raise SystemExit(1)

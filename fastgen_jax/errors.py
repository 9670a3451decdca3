"""Every error a user of fastgen_jax can meet: each names the field, its value and the remedy."""

from __future__ import annotations


class FastGenError(Exception):
    """Base of all errors raised on purpose; carries the field, its value and the remedy.

    The message reads ``field=value: problem; remedy`` so that a log line alone is enough to act on.
    """

    def __init__(
        self,
        problem: str,
        *,
        field: str | None = None,
        value: object = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.field = field
        self.value = value
        self.remedy = remedy
        subject = f"{field}={_shorten(value)}: " if field is not None else ""
        super().__init__(subject + problem + (f"; {remedy}" if remedy else ""))


class ConfigError(FastGenError, ValueError):
    """An engine setting is unknown, out of range, or contradicts another one."""


class InvalidRequestError(FastGenError, ValueError):
    """A prompt or its sampling parameters can't be served; nothing was queued."""


class CheckpointError(FastGenError, ValueError):
    """A weight file is missing, truncated, corrupt, or lacks a tensor."""


class UnsupportedModelError(FastGenError, ValueError):
    """The model asks for mathematics this engine doesn't implement."""


class TokenizerError(FastGenError, ValueError):
    """Text was asked for, but the model has no usable tokenizer or chat template."""


class RecompileError(FastGenError, RuntimeError):
    """A compiled function met a shape that was not declared; names the argument and the shape."""


class EngineClosedError(FastGenError, RuntimeError):
    """The engine was closed, or a failing step ended the requests that ran in it."""


class ReplayError(FastGenError, ValueError):
    """A log of a run is damaged or of another format, or lacks what replaying it needs."""


class HostLostError(FastGenError, RuntimeError):
    """One of the hosts that share a model has died, failed, or gone silent."""


def _shorten(value: object, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"

"""The first line of a log: the engine that wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Self

from fastgen_jax.bench.machine import machine_facts
from fastgen_jax.config import EngineConfig, ResolvedConfig
from fastgen_jax.engine_setup import EngineSetup
from fastgen_jax.errors import ReplayError
from fastgen_jax.observe.policy_data import policy_to_data
from fastgen_jax.scheduling.policy import Policy

FORMAT = 1

# What a device, a model and free memory decide; a replay takes it from the log.
_RESOLVED = (
    "dtype",
    "token_budget",
    "max_num_seqs",
    "block_size",
    "max_model_len",
    "step_shapes",
    "max_chained_steps",
    "max_chained_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedModel:
    """The model of a run.

    Attributes:
        name: what the caller called it.
        digest: of its configuration, and of its files' sizes, beginnings and ends.
    """

    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader:
    """Everything about an engine that running it again takes.

    Attributes:
        version: of fastgen_jax.
        started: date and time in UTC.
        machine: a few facts, for people.
        policy: see ``policy_from_data``.
        setup: sizes, shapes and seed.
        has_tokenizer: whether the engine had one.
        model: None for an engine over a fake device.
        config: the EngineConfig that was given, without its policy.
        resolved: the same with every None replaced.
    """

    version: str
    policy: Mapping[str, Any]
    setup: EngineSetup
    has_tokenizer: bool
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: Mapping[str, Any] = field(default_factory=lambda: asdict(machine_facts()))
    model: LoggedModel | None = None
    config: Mapping[str, Any] | None = None
    resolved: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        setup: EngineSetup,
        policy: str | Policy,
        *,
        version: str,
        has_tokenizer: bool,
        model: LoggedModel | None = None,
        config: EngineConfig | None = None,
        resolved: ResolvedConfig | None = None,
        machine: Mapping[str, Any] | None = None,
    ) -> Self:
        """The header of an engine's log; ``machine`` are facts beside ``machine_facts``."""
        return cls(
            version=version,
            policy=policy_to_data(policy),
            setup=setup,
            has_tokenizer=has_tokenizer,
            machine=asdict(machine_facts()) | dict(machine or {}),
            model=model,
            config=None if config is None else _config_to_data(config),
            resolved=None if resolved is None else asdict(resolved),
        )

    def to_data(self) -> dict[str, Any]:
        """The header as JSON can hold it."""
        return {
            "event": "start",
            "format": FORMAT,
            "fastgen": self.version,
            "started": self.started,
            "machine": dict(self.machine),
            "model": None if self.model is None else asdict(self.model),
            "config": self.config,
            "resolved": self.resolved,
            "policy": dict(self.policy),
            "has_tokenizer": self.has_tokenizer,
            "setup": self.setup.to_data(),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any], *, path: str) -> Self:
        """The header that ``to_data`` described.

        Raises:
            ReplayError: it isn't one, or of another format.
        """
        if data.get("event") != "start" or "format" not in data:
            raise ReplayError(
                "line 1 is no header of a log",
                field="log",
                value=path,
                remedy="give a file that EngineConfig(replay_log=...) wrote",
            )
        if data["format"] != FORMAT:
            raise ReplayError(
                f"has format {data['format']} of fastgen_jax {data.get('fastgen', 'unknown')}, "
                f"and this version replays format {FORMAT}",
                field="log",
                value=path,
                remedy="replay it with the version that wrote it",
            )
        try:
            model = data["model"]
            return cls(
                version=data["fastgen"],
                started=data["started"],
                machine=data["machine"],
                policy=data["policy"],
                setup=EngineSetup.from_data(data["setup"]),
                has_tokenizer=data["has_tokenizer"],
                model=None if model is None else LoggedModel(**model),
                config=data["config"],
                resolved=data["resolved"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ReplayError(
                f"the header is damaged: {type(error).__name__}: {error}", field="log", value=path
            ) from error

    def engine_config(self, *, show_progress: bool) -> EngineConfig:
        """Settings that bring up the same engine, whatever this machine would choose.

        Raises:
            ReplayError: the log is of an engine without a model.
            ConfigError: the settings can't be used here.
        """
        if self.config is None or self.resolved is None:
            raise ReplayError(
                "has no settings of a model: a fake device wrote it",
                field="log",
                remedy="replay it with simulate=True (--simulate)",
            )
        values = {name: value for name, value in self.config.items() if name != "policy"}
        values |= {name: self.resolved[name] for name in _RESOLVED}
        values["step_shapes"] = tuple(tuple(shape) for shape in values["step_shapes"])
        values["num_kv_blocks"] = self.setup.scheduler.num_blocks
        values["compile_in_background"] = False  # the log says when which shape came
        values["replay_log"] = None
        values["show_progress"] = show_progress
        return EngineConfig.from_dict(values)


def _config_to_data(config: EngineConfig) -> dict[str, Any]:
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    del values["policy"]  # it may be an object
    if config.step_shapes is not None:
        values["step_shapes"] = [list(shape) for shape in config.step_shapes]
    return values

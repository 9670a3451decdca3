"""Options that the bench commands share: what is measured, under which load, what is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from fastgen_jax.engine_options import DEFAULT_MODEL, EngineOptions
from fastgen_jax.errors import ConfigError

if TYPE_CHECKING:
    from fastgen_jax.bench.live.workload_spec import WorkloadSpec


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """What is measured: an engine in this process, or a server at --url."""

    model: str = DEFAULT_MODEL
    """Of the engine in this process: a built-in name, a directory, a .gguf file or a Hub id."""
    url: str | None = None
    """A server of the OpenAI protocol instead, such as http://127.0.0.1:8000."""
    served_model: str | None = None
    """The name under which the server serves; by default the first that it lists."""
    api_key: str | None = None
    """For the server; isn't written to the results."""
    timeout: float = 600.0
    """Seconds that a server may be silent within an answer; the request has failed then."""
    prompts: Literal["ids", "text"] = "ids"
    """What the server gets; text, made with --tokenizer, for servers that refuse token ids."""
    tokenizer: str | None = None
    """Built-in name, directory or .gguf file of the model whose tokenizer makes --prompts text."""
    vocab_size: int | None = None
    """Prompts hold ids below it; by default the model's, and 32000 for a server."""
    special_ids: int = 100
    """Prompts hold ids from here on: the first ones may be control tokens."""
    ignore_eos: bool = True
    """Ask the server to go on past EOS, with a field that vLLM and llama.cpp's server know."""
    extra_body: str | None = None
    """Further fields of every request to the server, as a JSON object."""


@dataclass(frozen=True, kw_only=True)
class WorkloadOptions:
    """The load: what isn't given comes from --workload, else from the defaults."""

    workload: str | None = None
    """A TOML file of these settings, such as those in configs/bench/."""
    kind: str | None = None
    """closed_loop, open_loop, conversations, at_once or trace; --rate alone means open_loop."""
    requests: int | None = None
    """Requests in all, or conversations; by default 32."""
    clients: int | None = None
    """Of a closed loop: each sends its next request when the last has ended; by default 4."""
    start_spread: float | None = None
    """Clients begin at random times within so many seconds; by default at once."""
    rate: float | None = None
    """Requests per second of an open loop, or new conversations; by default 1."""
    variation: float | None = None
    """Of the open loop's gaps: 1, the default, is Poisson; above are bursts, 0 is regular."""
    prompt_tokens: float | None = None
    """Mean prompt length, of its own part where prefixes are shared; by default 256."""
    output_tokens: float | None = None
    """Mean output length; by default 32."""
    deviation: float | None = None
    """Standard deviation of lengths, relative to the mean; by default 0.3, as in the paper."""
    most_prompt_tokens: int | None = None
    """Longer prompts are cut to it."""
    most_output_tokens: int | None = None
    """Longer outputs are cut to it."""
    prefixes: int | None = None
    """Different beginnings that the prompts share; by default they share nothing."""
    prefix_tokens: int | None = None
    """Length of these beginnings."""
    least_turns: int | None = None
    """Fewest turns of a conversation; by default 1."""
    most_turns: int | None = None
    """Most turns of a conversation; by default 4."""
    turn_tokens: float | None = None
    """Mean length of what a person adds in each further turn; by default 32."""
    think_seconds: float | None = None
    """Mean time before that; by default 1."""
    max_tokens: int | None = None
    """Ask for so many tokens and stop sooner, as EOS would; by default what comes is asked for."""
    ttft: float | None = None
    """Target for goodput: seconds to the first token."""
    tpot: float | None = None
    """Target for goodput: mean seconds per token after it."""
    seed: int | None = None
    """Same seed, same requests; by default 42."""
    trace: str | None = None
    """A file of arrivals, a line of JSON each, as docs/simulation.md describes."""

    def spec(self, defaults: Mapping[str, Any] | None = None) -> WorkloadSpec:
        """The file's settings, or else ``defaults``, with the given options on top."""
        from fastgen_jax.bench.live.workload_spec import WorkloadSpec

        if self.workload is None:
            base = WorkloadSpec(**(defaults or {}))
        else:
            base = WorkloadSpec.from_toml(self.workload)
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "workload"}
        given = {name: value for name, value in given.items() if value is not None}
        if "kind" not in given:
            if "trace" in given:
                given["kind"] = "trace"
            elif "rate" in given and base.kind == "closed_loop":
                given["kind"] = "open_loop"
            elif "clients" in given and base.kind == "open_loop":
                given["kind"] = "closed_loop"
        if given.get("kind", base.kind) != "trace" and base.trace is not None:
            given["trace"] = None
        return replace(base, **given)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is kept of a measurement."""

    json: Path | None = None
    """Write every number, raw, to this file."""
    plot: Path | None = None
    """Draw plots, as PNG and SVG, into this directory."""
    label: str | None = None
    """What tables and plots call it; by default the model's name, or the server's address."""

    def check(self) -> None:
        """Refuse now what would be refused after the measurement.

        Raises:
            ConfigError: no directory for the file, or no matplotlib for the plots.
        """
        if self.json is not None and not self.json.resolve().parent.is_dir():
            raise ConfigError(
                "there is no such directory",
                field="json",
                value=str(self.json),
                remedy="make it first",
            )
        if self.plot is not None:
            from fastgen_jax.bench.plots.figure import check_matplotlib

            check_matplotlib()


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How often and how carefully it is measured."""

    rounds: int = 1
    """How often everything is measured, in turns; the spread over rounds is reported."""
    warm_up: int = 4
    """Requests before the first point, two at a time, that aren't counted."""
    token_rates: tuple[float, ...] = (2.0, 4.0, 6.0)
    """Tokens per second after the first that a request must get to be effective throughput."""
    prompt_rate: float = 512.0
    """Its first token must come within its prompt's length divided by this; 512 is the paper's."""
    late_limit: float = 0.02
    """Warn when one request in a hundred is sent later than so many seconds after its time."""

    def check(self) -> None:
        """Refuse no rounds, and rates that are none.

        Raises:
            ConfigError: names the option.
        """
        if self.rounds < 1:
            raise ConfigError("must be at least 1", field="rounds", value=self.rounds)
        if self.warm_up < 0:
            raise ConfigError("must be 0 or more", field="warm_up", value=self.warm_up)
        if min(self.token_rates, default=1.0) <= 0 or self.prompt_rate <= 0:
            raise ConfigError(
                "must be above 0",
                field="token_rates, prompt_rate",
                value=(self.token_rates, self.prompt_rate),
            )


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """All that the commands which send requests have in common."""

    target: tyro.conf.OmitArgPrefixes[TargetOptions] = field(default_factory=TargetOptions)
    engine: tyro.conf.OmitArgPrefixes[EngineOptions] = field(default_factory=EngineOptions)
    load: tyro.conf.OmitArgPrefixes[WorkloadOptions] = field(default_factory=WorkloadOptions)
    runs: tyro.conf.OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)
    output: tyro.conf.OmitArgPrefixes[OutputOptions] = field(default_factory=OutputOptions)

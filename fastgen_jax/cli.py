"""``fastgen``: generate, chat, info, demo, plan, convert, replay and bench on the command line."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, fields
from typing import Annotated

import tyro

from fastgen_jax.bench.commands.group import Bench
from fastgen_jax.engine_options import DEFAULT_MODEL, EngineOptions
from fastgen_jax.errors import ConfigError, FastGenError
from fastgen_jax.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are drawn."""

    temperature: float = 0.0
    """0 always takes the most likely token."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with this probability."""
    top_k: int = 0
    """Keep so many tokens; 0 keeps all."""
    seed: int | None = None
    """Same seed, same tokens."""
    max_tokens: int = 256
    """Most tokens to generate."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer."""

    def params(self) -> SamplingParams:
        """As the library takes them."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            max_tokens=self.max_tokens,
            stop=self.stop or None,
        )


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Print the model's continuation of each prompt."""

    prompts: tyro.conf.Positional[tuple[str, ...]]
    """The texts to continue."""
    model: str = DEFAULT_MODEL
    """A built-in name, a directory, a .gguf file or a Hub id."""
    engine: tyro.conf.OmitArgPrefixes[EngineOptions] = field(default_factory=EngineOptions)
    sampling: tyro.conf.OmitArgPrefixes[SamplingOptions] = field(default_factory=SamplingOptions)

    def run(self) -> None:
        """Generate and print."""
        from fastgen_jax.llm import LLM

        if not self.prompts:
            raise ConfigError("is empty", field="prompts", value=(), remedy="give at least one")
        with LLM(self.model, config=self.engine.engine_config()) as llm:
            for output in llm.generate(list(self.prompts), self.sampling.params()):
                print(f"{output.prompt}{output.outputs[0].text}\n")


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Talk to the model; an empty line or the end of input leaves."""

    model: str = DEFAULT_MODEL
    """A built-in name, a directory, a .gguf file or a Hub id."""
    system: str | None = None
    """What the system message says."""
    engine: tyro.conf.OmitArgPrefixes[EngineOptions] = field(default_factory=EngineOptions)
    sampling: tyro.conf.OmitArgPrefixes[SamplingOptions] = field(default_factory=SamplingOptions)

    def run(self) -> None:
        """Read lines, stream answers."""
        from fastgen_jax.llm import LLM

        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        with LLM(self.model, config=self.engine.engine_config(in_background=True)) as llm:
            while line := _read_line():
                messages.append({"role": "user", "content": line})
                answer = ""
                for delta in llm.stream(llm.chat_prompt(messages), self.sampling.params()):
                    print(delta.text, end="", flush=True)
                    answer += delta.text
                print()
                messages.append({"role": "assistant", "content": answer})


@dataclass(frozen=True, kw_only=True)
class Info:
    """Print a model's shape, the settings in force, the memory plan and the compile report."""

    model: str = DEFAULT_MODEL
    """A built-in name, a directory, a .gguf file or a Hub id."""
    engine: tyro.conf.OmitArgPrefixes[EngineOptions] = field(default_factory=EngineOptions)

    def run(self) -> None:
        """Start the engine and print what it did."""
        from fastgen_jax.loaded_model import load_model

        loaded = load_model(self.model, self.engine.engine_config())
        try:
            for title, data in (("Model", loaded.model), ("Settings", loaded.config)):
                print(title)
                for item in fields(data):
                    print(f"  {item.name:<26}{getattr(data, item.name)}")
            print(loaded.startup.memory_plan)
            print(loaded.compile_report())
        finally:
            loaded.close()


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Stream one answer and print how long everything took."""

    question: tyro.conf.Positional[str] = "What is the capital of France?"
    """What to ask."""
    model: str = DEFAULT_MODEL
    """A built-in name, a directory, a .gguf file or a Hub id."""
    engine: tyro.conf.OmitArgPrefixes[EngineOptions] = field(default_factory=EngineOptions)
    sampling: tyro.conf.OmitArgPrefixes[SamplingOptions] = field(default_factory=SamplingOptions)

    def run(self) -> None:
        """Ask, stream, report."""
        from fastgen_jax.llm import LLM
        from fastgen_jax.models.sources import resolve_model

        imports = _seconds_since_process_start()
        path = resolve_model(self.model)  # the download doesn't count as starting
        begin = time.perf_counter()
        with LLM(path, config=self.engine.engine_config(in_background=True)) as llm:
            print(f"> {self.question}")
            asked = time.perf_counter()
            first = None
            num_tokens = 0
            prompt = llm.chat_prompt([{"role": "user", "content": self.question}])
            for delta in llm.stream(prompt, self.sampling.params()):
                first = first or time.perf_counter()
                num_tokens += len(delta.token_ids)
                print(delta.text, end="", flush=True)
            end = time.perf_counter()
            print("\n")
            assert first is not None
            rate = (num_tokens - 1) / (end - first) if num_tokens > 1 else 0.0
            print(f"Time to first token   {first - asked:8.3f} s  ({len(prompt)} prompt tokens)")
            print(f"Tokens after it       {rate:8.1f} per second  ({num_tokens} in all)")
            print(
                f"Start to first token  {first - begin + imports:8.2f} s  "
                "(imports, loading, compiling; without the download)"
            )
            print(llm.startup.memory_plan)
            print(llm.compile_report)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Compile a model's steps for a GPU that needn't be there; print memory, kernels, estimates."""

    model: str
    """A built-in shape such as llama-3.1-8b, a config.json, or a directory that holds one."""
    gpu: str = "h100"
    """h100, h200, a100 or a100-40gb."""
    tp: int = 1
    """GPUs that share the model; with --ep, that share each expert."""
    ep: int = 1
    """Groups of --tp GPUs, over which a mixture's experts are dealt out."""
    context: int | None = None
    """Tokens of every running request; by default 8192 or the model's own limit."""
    dtype: str = "bfloat16"
    """Of weights, activations and cache."""
    max_num_seqs: int = 256
    """Most requests running at once."""
    token_budget: int = 768
    """Most tokens of one step."""
    json: str | None = None
    """Write the plan as JSON to this file; - for standard output, in place of the tables."""
    plot: str | None = None
    """Draw where the time goes to this .png, .svg or .pdf file."""

    def run(self) -> None:
        """Plan, then print or write."""
        from fastgen_jax.plan.command import run_plan

        run_plan(
            self.model,
            gpu=self.gpu,
            tp=self.tp,
            ep=self.ep,
            context=self.context,
            dtype=self.dtype,
            max_num_seqs=self.max_num_seqs,
            token_budget=self.token_budget,
            json=self.json,
            plot=self.plot,
        )


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a model as a snapshot: a directory that the engine loads faster, on any devices."""

    model: tyro.conf.Positional[str]
    """A built-in name, a directory, a .gguf file or a Hub id."""
    directory: tyro.conf.Positional[str]
    """Where the snapshot goes; it appears when it is complete."""
    dtype: str | None = None
    """"float32" or "bfloat16"; by default what holds the model's weights without loss."""
    force: bool = False
    """Replace a snapshot that is there."""

    def run(self) -> None:
        """Read, write, say what was written."""
        from fastgen_jax.conversion import convert

        print(convert(self.model, self.directory, dtype=self.dtype, replace=self.force))


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Run a logged run again, up to the first difference; where there is one, end with status 1."""

    log: tyro.conf.Positional[str]
    """A file that --replay-log or EngineConfig(replay_log=...) wrote."""
    simulate: bool = False
    """Take the tokens from the log, and load no model."""
    model: str | None = None
    """The model, where it isn't to be found under the logged name any more."""
    until_step: int | None = None
    """The last step to replay."""

    def run(self) -> None:
        """Replay, say what was found."""
        from fastgen_jax.replaying.command import run_replay

        run_replay(self.log, simulate=self.simulate, model=self.model, until_step=self.until_step)


Command = (
    Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Chat, tyro.conf.subcommand("chat")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Replay, tyro.conf.subcommand("replay")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main() -> None:
    """Run the command given on the command line; user errors end with status 2, no traceback."""
    command = tyro.cli(Command, prog="fastgen", description=__doc__)  # pyright: ignore
    try:
        command.run()  # pyright: ignore[reportAttributeAccessIssue]
    except FastGenError as error:
        print(f"fastgen: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _read_line() -> str:
    try:
        return input("> ")
    except EOFError:
        return ""


def _seconds_since_process_start() -> float:
    """How long this process has run: what the imports took."""
    import psutil

    return time.time() - psutil.Process().create_time()


if __name__ == "__main__":
    main()

"""Every setting of an engine in one frozen object; TOML in and out."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from fastgen_jax.errors import ConfigError

if TYPE_CHECKING:
    from fastgen_jax.scheduling.policy import Policy

# Tokens that take as long to compute as the weights take to read: measured on a 2-core CPU, where
# a float32 step of 1 token took 8 times the marginal time of a token; about the roofline's ridge
# on a GPU (A100 156, H100 295).
_CPU_STEP_OVERHEAD = 8
_GPU_STEP_OVERHEAD = 256
# A launch costs about the same on every machine; beside a step of a GPU's it hides, and there a
# chain would only delay what waits for its end. So it does beside a CPU's step of many rows:
# chains of 4 saved 7 % of a step of 1 row, 3 % with 8 rows, and nothing with 32.
_CPU_CHAIN = 4
_CPU_CHAIN_TOKENS = 32
# The native kernels skip padding, so the smallest step that holds the demand is always the best.
_FREE_PADDING_OVERHEAD = 1 << 20

Implementation = Literal["mosaic_gpu", "triton", "native", "xla"]

DTYPES = ("auto", "float32", "bfloat16")
IMPLEMENTATIONS = ("auto", *get_args(Implementation))
QUANTIZATIONS = ("int8", "int4", "gguf")
ACTIVATION_QUANTIZATIONS = ("int8", "none")
LOAD_FORMATS = ("auto", "gguf", "safetensors", "pytorch", "orbax", "dummy")


def read_toml(path: str | Path, *, field: str) -> dict[str, Any]:
    """The names and values of a TOML file.

    Raises:
        ConfigError: it can't be read; names ``field``, which asked for it.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            str(error), field=field, value=str(path), remedy="give a readable TOML file"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How an engine runs a model; None means a default that suits the device and the model.

    Attributes:
        dtype: of weights, activations and cache. "auto": float32 on a CPU, bfloat16 elsewhere.
        quantization: of the weights in memory. None: none, they have dtype. "int8": int8, a scale
            for each output. "int4": 4 bits, a scale and a minimum for each 32 inputs; embedding and
            head in int8. "gguf": what a GGUF file holds as Q8_0, Q4_0 or Q4_1 stays as it is, the
            rest has dtype.
        activation_quantization: of what is multiplied with quantized weights. "int8": each row is
            rounded to int8, with a scale for each 16 of its numbers, and multiplied in integers,
            which is faster; matrices that aren't quantized get the row as it is. "none": nothing is
            rounded. None: "int8" with native kernels and ``quantization``, else "none".
        token_budget: most tokens of one step. None: 256 on a CPU, 512 elsewhere.
        max_num_seqs: most requests running at once. None: 32 on a CPU, 256 elsewhere.
        block_size: tokens of one block of the cache.
        num_kv_blocks: blocks of the cache, the null block included. None: what the memory plan
            allows, and no more than max_num_seqs requests of max_model_len can use.
        kv_cache_memory_fraction: share of the memory left beside weights and step that the cache
            may take. None: 0.03 on a CPU, 0.9 elsewhere.
        max_model_len: most tokens of a request, prompt and output. None: the model's own limit.
        tensor_parallel_size: devices that one model is split over: heads, feed-forward,
            vocabulary and cache.
        expert_parallel_size: parts into which a mixture's experts are dealt out; the model then
            takes this many times ``tensor_parallel_size`` devices. Everything but the experts is
            split over all of them.
        host_timeout_seconds: how long one of several hosts may be silent before it counts as lost.
        step_shapes: (tokens, rows) of the compiled steps, ascending; the last must hold the
            budget. None: a short ladder on a CPU, decode-only and full budget elsewhere. Tokens
            that pad a step cost nothing with native kernels, rows that pad it a little.
        max_chained_steps: most decode steps that the device runs in one launch while nobody waits;
            a stop is seen, and a new request joins, only at its end. None: 4 on a CPU, 1 elsewhere.
        max_chained_tokens: most tokens of such a launch, so that many rows, whose steps are long
            anyway, run in shorter chains. None: 32 on a CPU, no limit elsewhere.
        chunk_multiple: prompt chunks end at multiples of it where that loses no budget.
        policy: a name such as "fcfs", or an object of your own: see docs/adding_a_policy.md.
        enable_prefix_caching: share cached blocks between prompts with equal beginnings.
        max_logprobs: most log-probabilities per token that a request may ask for.
        max_logit_bias: most logit_bias entries of a request.
        max_bad_words: most token sequences that a request's bad_words may become.
        seed: start of the seeds given to requests without one.
        implementation: of attention and page write: "mosaic_gpu", "triton", "native" or
            "xla", which fails where it can't serve the model. "auto": the best that serves it on
            the device.
        num_threads: of the native kernels of a CPU. None: all cores that the process may use.
        load_format: "auto" | "gguf" | "safetensors" | "pytorch" (with torch) | "orbax" (of
            `fastgen convert`), or "dummy" for random weights.
        compilation_cache_dir: where compiled steps are kept between processes. None: in the
            user's cache directory; "off": nowhere.
        compile_in_background: start serving when one step shape is compiled, and compile the
            others meanwhile. Until then steps have other sizes, so tokens may differ where two
            of them are equally likely but for rounding. Nothing changes once all are on disk.
        replay_log: where to write all that `fastgen replay` needs to run this run again; a log that
            is there already is kept as ``.old``. None: nowhere. See docs/replay.md.
        step_history: how many of the last steps are kept for ``LLM.explain`` and ``LLM.history``.
            0: none, and both are refused.
        show_progress: progress bars and one-line notes on standard error.
    """

    dtype: str = "auto"
    quantization: str | None = None
    activation_quantization: str | None = None
    token_budget: int | None = None
    max_num_seqs: int | None = None
    block_size: int = 32
    num_kv_blocks: int | None = None
    kv_cache_memory_fraction: float | None = None
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    expert_parallel_size: int = 1
    host_timeout_seconds: float = 20.0
    step_shapes: Sequence[tuple[int, int]] | None = None
    max_chained_steps: int | None = None
    max_chained_tokens: int | None = None
    chunk_multiple: int = 1
    policy: str | Policy = "fcfs"
    enable_prefix_caching: bool = True
    max_logprobs: int = 20
    max_logit_bias: int = 320
    max_bad_words: int = 64
    seed: int = 0
    implementation: str = "auto"
    num_threads: int | None = None
    load_format: str = "auto"
    compilation_cache_dir: str | None = None
    compile_in_background: bool = False
    replay_log: str | None = None
    step_history: int = 1000
    show_progress: bool = True

    def __post_init__(self) -> None:
        """Refuse values out of range, naming the field."""
        for name in ("block_size", "chunk_multiple", "max_logit_bias", "max_bad_words"):
            self._check_count(name, 1)
        self._check_count("max_logprobs", 0)
        self._check_count("seed", 0)
        self._check_count("step_history", 0)
        optional = ("token_budget", "max_num_seqs", "max_model_len", "max_chained_steps")
        for name in (*optional, "max_chained_tokens", "num_threads"):
            if getattr(self, name) is not None:
                self._check_count(name, 1)
        if self.num_kv_blocks is not None:
            self._check_count("num_kv_blocks", 2)
        for name in ("enable_prefix_caching", "compile_in_background", "show_progress"):
            if not isinstance(getattr(self, name), bool):
                raise self._invalid(name, "must be True or False")
        self._check_choice("dtype", DTYPES)
        if self.quantization is not None:
            self._check_choice("quantization", QUANTIZATIONS)
        if self.activation_quantization is not None:
            self._check_choice("activation_quantization", ACTIVATION_QUANTIZATIONS)
        if self.activation_quantization == "int8" and self.quantization is None:
            raise self._invalid(
                "activation_quantization",
                "rounds what quantized weights are multiplied with, and quantization is None",
                "set quantization too, or leave it out",
            )
        self._check_choice("implementation", IMPLEMENTATIONS)
        self._check_choice("load_format", LOAD_FORMATS)
        fraction = self.kv_cache_memory_fraction
        is_number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
        if fraction is not None and not (is_number and 0.0 < fraction <= 1.0):
            raise self._invalid("kv_cache_memory_fraction", "must lie in (0, 1]")
        if self.compilation_cache_dir is not None and not isinstance(
            self.compilation_cache_dir, str
        ):
            raise self._invalid("compilation_cache_dir", 'must be a path, "off" or None')
        if self.replay_log is not None and not (
            isinstance(self.replay_log, str) and self.replay_log
        ):
            raise self._invalid("replay_log", "must be a path or None")
        self._check_count("tensor_parallel_size", 1)
        self._check_count("expert_parallel_size", 1)
        timeout = self.host_timeout_seconds
        if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
            raise self._invalid("host_timeout_seconds", "must be a number above 0")
        if self.quantization is not None and self.num_devices > 1:
            raise self._invalid(
                "quantization",
                f"quantized weights can't be split over devices ({self.num_devices} asked for)",
                "leave it out, or use one device",
            )
        self._check_shapes()

    @property
    def num_devices(self) -> int:
        """Devices that the model takes."""
        return self.tensor_parallel_size * self.expert_parallel_size

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> EngineConfig:
        """EngineConfig from names and values; an unknown name is refused."""
        known = [field.name for field in fields(cls)]
        for name, value in values.items():
            if name not in known:
                raise ConfigError(
                    "is no engine setting",
                    field=name,
                    value=value,
                    remedy="known ones are " + ", ".join(known),
                )
        return cls(**values)  # pyright: ignore[reportArgumentType]  # checked in __post_init__

    @classmethod
    def from_toml(cls, path: str | Path) -> EngineConfig:
        """EngineConfig from a TOML file such as those in ``configs/``."""
        values = read_toml(path, field="config")
        shapes = values.get("step_shapes")
        if isinstance(shapes, list):
            values["step_shapes"] = tuple(tuple(s) if isinstance(s, list) else s for s in shapes)
        return cls.from_dict(values)

    def to_toml(self) -> str:
        """The settings as TOML text that ``from_toml`` reads back; fields at None are left out.

        Raises:
            ConfigError: the policy is an object, which TOML can't hold.
        """
        if not isinstance(self.policy, str):
            raise self._invalid("policy", "is an object", "name a registered policy to save it")
        lines: list[str] = []
        for name, value in asdict(self).items():
            if value is None:
                continue
            if name == "step_shapes":
                value = [list(shape) for shape in value]
            lines.append(f"{name} = {_toml_value(value)}")
        return "\n".join(lines) + "\n"

    def _check_shapes(self) -> None:
        if self.step_shapes is None:
            return
        given = self.step_shapes
        is_list = isinstance(given, Sequence) and not isinstance(given, str)
        if not is_list or not given or not all(_is_shape(shape) for shape in given):
            raise self._invalid("step_shapes", "must hold (tokens, rows) pairs of positive sizes")
        shapes = [tuple(shape) for shape in given]
        if any(tokens < rows for tokens, rows in shapes):
            raise self._invalid("step_shapes", "a step can't have more rows than tokens")
        if any(a[0] >= b[0] or a[1] > b[1] for a, b in pairwise(shapes)):
            raise self._invalid("step_shapes", "must ascend in tokens, and not descend in rows")
        if self.token_budget is not None and shapes[-1][0] != self.token_budget:
            raise self._invalid(
                "step_shapes",
                f"the last shape must hold token_budget={self.token_budget} exactly",
                "change one of the two",
            )

    def _check_count(self, name: str, low: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise self._invalid(name, f"must be an integer from {low} on")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        if getattr(self, name) not in choices:
            raise self._invalid(name, "is unknown", "use one of " + ", ".join(choices))

    def _invalid(self, name: str, problem: str, remedy: str | None = None) -> ConfigError:
        return ConfigError(problem, field=name, value=getattr(self, name), remedy=remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """An EngineConfig with every None replaced for one model on one device.

    Attributes:
        dtype: "float32" or "bfloat16".
        activation_quantization: "int8" or "none": of what quantized weights are multiplied with.
        implementation: of attention and page write; None for the best.
        max_blocks_per_seq: blocks that a request of max_model_len needs (P).
        max_chained_steps: most decode steps in one launch.
        max_chained_tokens: most tokens of a launch of several steps; None: no limit.
        step_overhead: what a step costs before its first token, in tokens: reading the weights.
        is_native: whether a CPU's native kernels compute the products.
        num_threads: of the native kernels; 1 where there are none.
    """

    dtype: str
    activation_quantization: str
    implementation: Implementation | None
    token_budget: int
    max_num_seqs: int
    block_size: int
    kv_cache_memory_fraction: float
    max_model_len: int
    step_shapes: tuple[tuple[int, int], ...]
    max_blocks_per_seq: int
    step_overhead: int
    max_chained_steps: int
    max_chained_tokens: int | None = None
    is_native: bool = False
    num_threads: int = 1


def resolve_config(
    config: EngineConfig,
    *,
    platform: str,
    model_max_len: int,
    has_native: bool = False,
    can_pack: bool = True,
) -> ResolvedConfig:
    """The settings in force on a platform ("cpu", "gpu", …) for a model of the given length.

    ``has_native`` says that the native kernels were built for this processor, ``can_pack`` that the
    model's weights can be packed for them.

    Raises:
        ConfigError: max_model_len above the model's, shapes that don't fit the budget, or a setting
            of native kernels where none run.
    """
    is_cpu = platform == "cpu"
    is_native = is_cpu and has_native and config.implementation in ("auto", "native")
    is_native = is_native and config.num_devices == 1
    if config.num_threads is not None and not is_native:
        raise ConfigError(
            "no native kernels run here that could use it",
            field="num_threads",
            value=config.num_threads,
            remedy="leave it out; XLA takes its threads from the cores that the process may use",
        )
    if config.quantization is not None and not is_cpu:
        raise ConfigError(
            f"weights stay quantized on a CPU only, this is {platform!r}",
            field="quantization",
            value=config.quantization,
            remedy="leave it out",
        )
    dtype = config.dtype if config.dtype != "auto" else ("float32" if is_cpu else "bfloat16")
    max_model_len = config.max_model_len or model_max_len
    if max_model_len > model_max_len:
        raise ConfigError(
            f"exceeds the model's own limit of {model_max_len}",
            field="max_model_len",
            value=max_model_len,
            remedy=f"use at most {model_max_len}",
        )
    if config.step_shapes is not None:
        shapes = tuple((tokens, rows) for tokens, rows in config.step_shapes)
        token_budget = shapes[-1][0]
        max_num_seqs = config.max_num_seqs or shapes[-1][1]
    else:
        token_budget = config.token_budget or (256 if is_cpu else 512)
        max_num_seqs = config.max_num_seqs or (32 if is_cpu else 256)
        shapes = _default_shapes(
            token_budget, max_num_seqs, dtype=dtype, is_cpu=is_cpu, is_native=is_native and can_pack
        )
    if shapes[-1][1] > max_num_seqs:
        raise ConfigError(
            f"has more rows than max_num_seqs={max_num_seqs}",
            field="step_shapes",
            value=shapes,
            remedy="lower the rows or raise max_num_seqs",
        )
    named = None if config.implementation == "auto" else config.implementation
    return ResolvedConfig(
        dtype=dtype,
        activation_quantization=_activation_quantization(config, is_native=is_native),
        implementation=cast("Implementation | None", named),
        token_budget=token_budget,
        max_num_seqs=max_num_seqs,
        block_size=config.block_size,
        kv_cache_memory_fraction=config.kv_cache_memory_fraction or (0.03 if is_cpu else 0.9),
        max_model_len=max_model_len,
        step_shapes=shapes,
        max_blocks_per_seq=-(-max_model_len // config.block_size),
        step_overhead=_step_overhead(is_cpu=is_cpu, is_native=is_native and can_pack),
        max_chained_steps=config.max_chained_steps or (_CPU_CHAIN if is_cpu else 1),
        max_chained_tokens=config.max_chained_tokens or (_CPU_CHAIN_TOKENS if is_cpu else None),
        is_native=is_native,
        num_threads=(config.num_threads or usable_cores()) if is_native else 1,
    )


def usable_cores() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def user_cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The directory for downloaded models and compiled steps.

    In XDG_CACHE_HOME if it is an absolute path, as its specification demands, else in ~/.cache.
    """
    configured = Path(environ.get("XDG_CACHE_HOME", ""))
    base = configured if configured.is_absolute() else Path.home() / ".cache"
    return base / "fastgen_jax"


def _activation_quantization(config: EngineConfig, *, is_native: bool) -> str:
    if config.activation_quantization is not None:
        return config.activation_quantization
    return "int8" if is_native and config.quantization is not None else "none"


def _step_overhead(*, is_cpu: bool, is_native: bool) -> int:
    if is_native:
        return _FREE_PADDING_OVERHEAD
    return _CPU_STEP_OVERHEAD if is_cpu else _GPU_STEP_OVERHEAD


def _default_shapes(
    token_budget: int, max_num_seqs: int, *, dtype: str, is_cpu: bool, is_native: bool
) -> tuple[tuple[int, int], ...]:
    """A ladder where padding costs (CPU), else decode-only and full budget.

    XLA's bfloat16 product on a CPU is slower for 1 token than for 8, so a bfloat16 ladder starts
    at 8. Native kernels skip padding; what remains of it is the sampler, which sees all rows.
    """
    max_rows = min(max_num_seqs, token_budget)
    if is_native:
        sizes = [1, min(8, token_budget), token_budget]
    elif not is_cpu:
        sizes = [max_rows, token_budget]
    else:
        first = 1 if dtype == "float32" else 8
        sizes = [min(first, token_budget), max_rows, token_budget]
    tokens = sorted(set(sizes))
    return tuple((size, min(size, max_rows)) for size in tokens)


def _is_shape(shape: object) -> bool:
    if not isinstance(shape, Sequence) or len(shape) != 2:
        return False
    return all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in shape)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return str(value)

"""The engine's settings as options of the command line."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fastgen_jax.config import EngineConfig

DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Settings of the engine; what isn't given comes from --config, else from the defaults."""

    config: str | None = None
    """A TOML file of EngineConfig fields, such as those in configs/."""
    dtype: str | None = None
    """"float32", "bfloat16" or "auto"."""
    token_budget: int | None = None
    """Most tokens of one step."""
    max_num_seqs: int | None = None
    """Most requests running at once."""
    max_model_len: int | None = None
    """Most tokens of a request."""
    tensor_parallel_size: int | None = None
    """Devices that the model is split over."""
    expert_parallel_size: int | None = None
    """Parts into which a mixture's experts are dealt out, on as many times the devices."""
    num_kv_blocks: int | None = None
    """Blocks of the cache; the memory plan decides where it isn't given."""
    policy: str | None = None
    """How steps are filled: "fcfs", "priority", "prefill_first", ..."""
    replay_log: str | None = None
    """Write all that `fastgen replay` needs to this file."""

    def engine_config(self, *, in_background: bool = False) -> EngineConfig:
        """The file's settings with the given options on top.

        ``in_background`` is for somebody who waits for one answer: it compiles the rest meanwhile.
        """
        base = EngineConfig() if self.config is None else EngineConfig.from_toml(self.config)
        values = {f.name: getattr(base, f.name) for f in fields(EngineConfig)}
        values["compile_in_background"] = base.compile_in_background or in_background
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name != "config" and value is not None:
                values[option.name] = value
        return EngineConfig.from_dict(values)

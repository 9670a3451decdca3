"""What a caller asked for as plain data, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from fastgen_jax.latency_targets import LatencyTargets
from fastgen_jax.request import Request
from fastgen_jax.sampling_params import SamplingParams

_DEFAULT_PARAMS = SamplingParams()
_NO_TARGETS = LatencyTargets()


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One call of ``Engine.submit``; ``arrival`` in seconds on the engine's clock."""

    arrival: float
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    priority: int
    cache_salt: str | None
    targets: LatencyTargets


def submission_to_data(first: Request) -> dict[str, Any]:
    """The call that queued a request and those for its prompt's other completions.

    What has its default is left out.
    """
    data: dict[str, Any] = {
        "request": first.request_id.partition("-")[0],
        "arrival": first.arrival_time,
        "seed": first.seed,
        "prompt": list(first.prompt_token_ids),
        "params": _params_to_data(first.params),
    }
    if first.priority:
        data["priority"] = first.priority
    if first.cache_salt is not None:
        data["cache_salt"] = first.cache_salt
    if first.targets != _NO_TARGETS:
        data["targets"] = asdict(first.targets)
    return data


def submission_from_data(data: Mapping[str, Any]) -> Submission:
    """The call that ``submission_to_data`` described.

    Raises:
        KeyError, TypeError, ValueError: the data doesn't describe one.
    """
    params = dict(data["params"])
    if "logit_bias" in params:
        params["logit_bias"] = dict(params["logit_bias"])
    return Submission(
        arrival=float(data["arrival"]),
        prompt_token_ids=tuple(data["prompt"]),
        params=SamplingParams.from_dict(params),
        priority=data.get("priority", 0),
        cache_salt=data.get("cache_salt"),
        targets=LatencyTargets(**data.get("targets", {})),
    )


def _params_to_data(params: SamplingParams) -> dict[str, Any]:
    named = ((field.name, getattr(params, field.name)) for field in fields(params))
    return {
        name: _to_data(value) for name, value in named if value != getattr(_DEFAULT_PARAMS, name)
    }


def _to_data(value: Any) -> Any:
    if isinstance(value, Mapping):
        return [list(item) for item in value.items()]  # JSON's keys are texts
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(value)
    return value

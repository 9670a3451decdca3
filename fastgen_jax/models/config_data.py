"""A model's configuration as plain data for JSON, and back."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from fastgen_jax.models import config as parts
from fastgen_jax.models import rope_config

_KIND = "kind of object"
_CLASSES: dict[str, type[Any]] = {
    name: value
    for module in (parts, rope_config)
    for name, value in vars(module).items()
    if isinstance(value, type) and is_dataclass(value)
}


def config_to_data(config: parts.ModelConfig) -> dict[str, Any]:
    """Return the configuration as nested objects, lists and plain values."""
    return _to_data(config)


def config_from_data(data: dict[str, Any]) -> parts.ModelConfig:
    """Return the configuration that ``config_to_data`` described.

    Raises:
        ValueError: it isn't one.
    """
    config = _from_data(data)
    if not isinstance(config, parts.ModelConfig):
        raise ValueError(f"data: describes {type(config).__name__}, not a ModelConfig")
    return config


def _to_data(value: Any) -> Any:
    if is_dataclass(value):
        inner = {field.name: _to_data(getattr(value, field.name)) for field in fields(value)}
        return {_KIND: type(value).__name__} | inner
    if isinstance(value, tuple):
        return [_to_data(item) for item in value]
    return value


def _from_data(data: Any) -> Any:
    if isinstance(data, list):
        return tuple(_from_data(item) for item in data)
    if not isinstance(data, dict):
        return data
    kind = data.get(_KIND)
    if kind not in _CLASSES:
        raise ValueError(f"{_KIND}={kind!r}: must be one of {', '.join(sorted(_CLASSES))}")
    inner = {name: _from_data(value) for name, value in data.items() if name != _KIND}
    try:
        return _CLASSES[kind](**inner)
    except TypeError as error:
        raise ValueError(f"{kind}: {error}") from error

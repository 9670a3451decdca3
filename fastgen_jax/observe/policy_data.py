"""A policy as data: its name, or how to make it again."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping
from typing import Any

from fastgen_jax.errors import ReplayError
from fastgen_jax.scheduling.policy import Policy, get_policy


def policy_to_data(policy: str | Policy) -> dict[str, Any]:
    """``{"name": …}``, ``{"import": "module:Class"}``, or ``{"object": …}`` for people alone.

    A class is named only where a new object of it, made without arguments, equals the one given.
    """
    if isinstance(policy, str):
        return {"name": policy}
    kind = type(policy)
    is_importable = kind.__module__ != "__main__" and "<locals>" not in kind.__qualname__
    if is_importable and _is_as_new(policy):
        return {"import": f"{kind.__module__}:{kind.__qualname__}"}
    return {"object": repr(policy)}


def policy_from_data(data: Mapping[str, Any]) -> str | Policy:
    """The policy of a log, as it was before the first step.

    Raises:
        ReplayError: it can't be made from what the log says.
    """
    if "name" in data:
        return get_policy(data["name"])
    if "import" not in data:
        raise _unknown(data.get("object"), "was an object that the log can't describe")
    module, _, name = data["import"].partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return get_policy(found())
    except Exception as error:
        raise _unknown(
            data["import"], f"can't be made again: {type(error).__name__}: {error}"
        ) from error


def _is_as_new(policy: Policy) -> bool:
    """Whether ``type(policy)()`` has the same state; what can't be compared, hasn't."""
    try:
        return pickle.dumps(type(policy)()) == pickle.dumps(policy)
    except Exception:
        return False


def _unknown(value: object, problem: str) -> ReplayError:
    return ReplayError(
        problem,
        field="policy",
        value=value,
        remedy="give an equal one: fastgen_jax.replay(path, policy=...)",
    )

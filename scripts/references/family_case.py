"""What one reference of a model family is made of: a tiny config and what it has to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change to a case: fields of its config, and constants for tensors named by a pattern."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    fill: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One tiny random checkpoint and what its continuations depend on.

    ``felt`` lists changes that must alter the first log-probabilities: they prove that the case
    tests what it says. ``unfelt`` lists changes that transformers ignores. ``insensitive`` is a
    pattern of tensors without influence by design. ``cache_matters`` says that transformers
    computes other tokens with its cache than without; ``fixed_rope`` asks for the results with
    frequencies that stay the same for a whole request, too. ``generation`` becomes
    generation_config.json.
    """

    name: str
    seed: int
    model_type: str
    covers: str
    config: Mapping[str, Any]
    note: str = ""
    felt: tuple[Change, ...] = ()
    unfelt: tuple[Change, ...] = ()
    insensitive: str = "$^"
    generation: Mapping[str, Any] = field(default_factory=dict)
    cache_matters: bool = False
    fixed_rope: bool = False


# Sizes that all families share, small so that all cases fit in the repository. The epsilon and
# theta of each case are far from usual values, so that reading them from the config matters.
TINY: Mapping[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


def rope(theta: float, **parameters: Any) -> dict[str, Any]:
    """Return the config's field of rotary positions, of the default type unless named."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | parameters}

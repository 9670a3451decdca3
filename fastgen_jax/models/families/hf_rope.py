"""A rotary embedding from config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fastgen_jax.errors import CheckpointError
from fastgen_jax.models.rope_config import (
    DynamicNtkScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)
from fastgen_jax.models.weights.fields import Fields

_GROUPS = ("rope_scaling", "rope_parameters")


def read_rope(
    fields: Fields,
    *,
    head_dim: int,
    max_length: int,
    theta: float,
    rotary_share: float | None,
    aliases: Mapping[str, str] | None = None,
) -> RopeConfig:
    """The rotary embedding of rope_parameters or, in older descriptions, of rope_scaling.

    Args:
        fields: the description.
        head_dim: D.
        max_length: positions that the model is meant for.
        theta: the family's default of the base.
        rotary_share: its default of the share of a head that is rotated; None: it rotates all,
            and another share is refused.
        aliases: other names of types that old descriptions of the family use.
    """
    thetas = {"rope_theta": fields.get("rope_theta")}
    shares = {"partial_rotary_factor": fields.get("partial_rotary_factor")}
    groups = {name: group for name in _GROUPS if (group := fields.group(name)) is not None}
    scaling: RopeScaling | None = None
    for name, group in groups.items():
        thetas[f"{name}.rope_theta"] = group.get("rope_theta")
        shares[f"{name}.partial_rotary_factor"] = group.get("partial_rotary_factor")
        found = read_scaling(
            group, fields, max_length=max_length, aliases={} if aliases is None else aliases
        )
        scaling = scaling if found is None else found
    share = _one(fields, shares, rotary_share or 1.0, "the rotated share of a head")
    if rotary_share is None and share != 1:
        stated = next(name for name, value in shares.items() if value is not None)
        raise fields.unsupported(stated, share, "a partial rotary embedding")
    return RopeConfig(
        theta=_one(fields, thetas, theta, "the rotary base"),
        rotary_dim=int(head_dim * share),
        scaling=scaling,
    )


def read_scaling(
    group: Fields, description: Fields, *, max_length: int, aliases: Mapping[str, str]
) -> RopeScaling | None:
    """The scaling that a group asks for; a field of it that isn't understood is refused."""
    for name in ("rope_theta", "partial_rotary_factor", "type"):
        group.get(name)
    kind = group.text("rope_type", group.text("type", "default"))
    kind = aliases.get(kind, kind)
    stated = description.get("original_max_position_embeddings")
    if stated is None and kind not in ("default", "linear", "dynamic"):
        stated = group.get("original_max_position_embeddings")
    elif stated is not None:
        group.get("original_max_position_embeddings")
    outer = Fields({"original_max_position_embeddings": stated}, where=description.where)
    original = outer.integer("original_max_position_embeddings", max_length)
    scaling = _scaling(kind, group, original=original, max_length=max_length)
    group.refuse_unread(())
    return scaling


def _scaling(kind: str, group: Fields, *, original: int, max_length: int) -> RopeScaling | None:
    match kind:
        case "default":
            group.require("factor", (1, 1.0), "scaling the rotary embedding")
            return None
        case "linear":
            return LinearScaling(factor=group.positive_number("factor"))
        case "dynamic":
            return DynamicNtkScaling(
                factor=group.positive_number("factor"), original_length=max_length
            )
        case "llama3":
            return Llama3Scaling(
                factor=group.positive_number("factor"),
                low_freq_factor=group.positive_number("low_freq_factor"),
                high_freq_factor=group.positive_number("high_freq_factor"),
                original_length=original,
            )
        case "yarn":
            return _yarn(group, original=original, max_length=max_length)
        case "longrope":
            return _longrope(group, original=original, max_length=max_length)
        case _:
            raise group.unsupported("rope_type", kind, "scaling the rotary embedding this way")


def _yarn(group: Fields, *, original: int, max_length: int) -> YarnScaling:
    factor = group.positive_number("factor", max_length / original)
    main, of_all = group.get("mscale"), group.get("mscale_all_dim")
    if main and of_all:
        scale = yarn_scale(factor, group.positive_number("mscale"))
        scale /= yarn_scale(factor, group.positive_number("mscale_all_dim"))
    else:
        scale = yarn_scale(factor, 1.0)
    return YarnScaling(
        factor=factor,
        original_length=original,
        beta_fast=group.positive_number("beta_fast", 32.0),
        beta_slow=group.positive_number("beta_slow", 1.0),
        attention_factor=group.positive_number("attention_factor", scale),
        truncate=group.flag("truncate", True),
    )


def yarn_scale(factor: float, multiplier: float) -> float:
    """The factor of cosines and sines that the paper recommends."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def _longrope(group: Fields, *, original: int, max_length: int) -> LongRopeScaling:
    factor = group.positive_number("factor", max_length / original)
    scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return LongRopeScaling(
        short_factors=group.numbers("short_factor"),
        long_factors=group.numbers("long_factor"),
        original_length=original,
        attention_factor=group.positive_number("attention_factor", scale),
    )


def _one(fields: Fields, stated: Mapping[str, object], default: float, meaning: str) -> float:
    """The one number that all places that state it agree on."""
    checked = Fields(stated, where=fields.where)
    values = {name: checked.positive_number(name) for name in stated if stated[name] is not None}
    if len(set(values.values())) > 1:
        raise CheckpointError(
            f"{meaning} is stated twice, differently ({fields.where})",
            field=" and ".join(values),
            value=tuple(values.values()),
            remedy="keep the right one",
        )
    return next(iter(values.values()), default)

"""Proof that each part of a tiny model is felt in its first log-probabilities."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from family_case import Case, Change
from family_weights import neutral
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

# A change is felt if it moves a log-probability by more than this.
FELT = 1e-3
# And isn't if it moves none by more than this.
UNFELT = 1e-6

EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")

Score = Callable[[PreTrainedModel], torch.Tensor]


class UnfeltError(ValueError):
    """A change of the case, or one of its tensors, matters too little or too much."""


def built(case: Case, change: Change | None = None) -> PreTrainedModel:
    """Return the case's model, its config changed if asked, with transformers' own weights."""
    fields = copy.deepcopy(dict(case.config) | dict(change.config if change else {}))
    config = AutoConfig.for_model(case.model_type, **fields)
    return AutoModelForCausalLM.from_config(config, **implementations(case)).float().eval()


def implementations(case: Case) -> dict[str, str]:
    """Return the plainest implementations of attention and experts that are right."""
    return {
        "attn_implementation": "eager",
        "experts_implementation": "eager",
    }


def changed(case: Case, change: Change, state: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """Return the changed case's model with the weights that it shares with the case's own."""
    torch.manual_seed(0)
    model = built(case, change)
    own = model.state_dict()
    shared = {name: value.clone() for name, value in state.items() if name in own}
    for pattern, constant in change.fill.items():
        names = [name for name in shared if re.search(pattern, name)]
        if not names:
            raise ValueError(f"{case.name}: no tensor is named like {pattern!r}")
        for name in names:
            shared[name].fill_(constant)
    if getattr(model.config, "tie_word_embeddings", False):
        shared.pop("lm_head.weight", None)
    model.load_state_dict(shared, strict=False)
    return model


def fields_felt(case: Case, model: PreTrainedModel, score: Score) -> dict[str, float]:
    """Return how much each change of the case moves the score, after checking the bounds."""
    base = score(model)
    state = model.state_dict()
    felt = {}
    for change in (*case.felt, *common_changes(case)):
        felt[change.name] = distance(base, score(changed(case, change, state)))
        if felt[change.name] <= FELT:
            raise UnfeltError(f"{case.name}: {change.name!r} moves only {felt[change.name]:.1e}")
    for change in case.unfelt:
        moved = distance(base, score(changed(case, change, state)))
        if moved > UNFELT:
            raise UnfeltError(f"{case.name}: {change.name!r} moves {moved:.1e}, and should not")
    return felt


def common_changes(case: Case) -> tuple[Change, ...]:
    """Return changes of fields that many families share: the norms' epsilon and theta."""
    changes = [
        Change(name=f"{field} of 1e-6", config={field: 1e-6})
        for field in EPSILONS
        if field in case.config
    ]
    rope = case.config.get("rope_parameters")
    if rope is not None:
        kinds = {"": rope} if "rope_theta" in rope else rope
        for kind in kinds:
            other = copy.deepcopy(rope)
            part = other[kind] if kind else other
            part["rope_theta"] *= 4
            changes.append(
                Change(name=f"{kind} theta x 4".strip(), config={"rope_parameters": other})
            )
    return tuple(changes)


@torch.no_grad()
def tensors_felt(case: Case, model: PreTrainedModel, score: Score) -> dict[str, float]:
    """Return how much the score moves when each kind of tensor is switched off, in all layers."""
    base = score(model)
    unit_offset = case.model_type.startswith("gemma")
    groups: dict[str, list[tuple[nn.Parameter, str]]] = {}
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            group = re.sub(r"\d+", "*", f"{module_name}.{name}")
            kind = "" if name.endswith("bias") else type(module).__name__
            groups.setdefault(group, []).append((parameter, kind))
    felt = {}
    for group, parameters in groups.items():
        kept = [parameter.clone() for parameter, _ in parameters]
        for parameter, kind in parameters:
            parameter.fill_(neutral(kind, unit_offset=unit_offset))
        felt[group] = distance(base, score(model))
        for (parameter, _), values in zip(parameters, kept, strict=True):
            parameter.copy_(values)
        expected = re.search(case.insensitive, group) is None
        if (felt[group] > FELT) != expected:
            raise UnfeltError(f"{case.name}: without {group} {felt[group]:.1e} moves")
    if distance(base, score(model)) != 0:
        raise ValueError(f"{case.name}: the weights were not restored")
    return felt


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the largest difference."""
    return float((first - second).abs().max())


def router_gap(model: PreTrainedModel, run: Callable[[], Any]) -> float | None:
    """Return the smallest gap between the last chosen and first unchosen expert while running.

    None for models without experts. A tiny gap would let rounding choose another expert.
    """
    gaps: list[float] = []

    def note(module: nn.Module, _: Any, output: tuple[torch.Tensor, ...]) -> None:
        ordered = output[0].float().sort(dim=-1, descending=True).values
        top_k = int(module.top_k)  # type: ignore[arg-type]
        gaps.append(float((ordered[:, top_k - 1] - ordered[:, top_k]).min()))

    routers = [module for module in model.modules() if type(module).__name__.endswith("Router")]
    hooks = [router.register_forward_hook(note) for router in routers]
    run()
    for hook in hooks:
        hook.remove()
    return min(gaps) if gaps else None

"""Random weights for tiny models, of sizes that make each of their parts matter."""

from __future__ import annotations

import torch
from torch import nn

# Standard deviations of outputs for inputs of variance 1. Large scores make attention choose,
# and large logits leave clear choices.
GAINS = (("q_proj", 1.7), ("k_proj", 1.7), ("query_key_value", 1.4), ("qkv_proj", 1.4))
GAINS += (("c_attn", 1.4), ("lm_head", 3.0))

FINAL_NORMS = ("model.norm.", "ln_f.", "decoder.final_layer_norm.", "neox.final_layer_norm.")
FINAL_NORMS += ("model.final_layernorm.",)


@torch.no_grad()
def randomize(model: nn.Module, seed: int, *, tied: bool, unit_offset: bool) -> None:
    """Overwrite all parameters with random values, norms' weights and biases too.

    ``tied`` says that the embeddings are the head as well: they are small then, and the final norm
    makes up for it, as a model whose residual is mostly the token itself would repeat it.
    ``unit_offset`` says that the norms multiply by 1 + weight and the embeddings are enlarged.
    """
    names = [name for name, _ in model.named_parameters()]
    has_final_norm = any(part in name for name in names for part in FINAL_NORMS)
    final = (6.0 if unit_offset else 3.0) if tied and has_final_norm else 1.0
    generator = torch.Generator().manual_seed(seed)
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if tied and f"{module_name}.{name}".endswith("lm_head.weight"):
                continue
            values = torch.randn(parameter.shape, generator=generator)
            path = f"{module_name}.{name}"
            if "Norm" in type(module).__name__:
                mean = final if any(part in path for part in FINAL_NORMS) else 1.0
                parameter.copy_(norm_values(values, path, mean - float(unit_offset)))
            else:
                embedding = 3.0 / final / values.shape[-1] ** 0.5 if tied else 1.0
                parameter.copy_(scaled(values, path, module, embedding))


def norm_values(values: torch.Tensor, path: str, mean: float) -> torch.Tensor:
    """Return standard normal values as a norm's biases, or its weights around ``mean``."""
    return 0.3 * values if path.endswith("bias") else 0.3 * values.clamp(-2, 2) + mean


def scaled(values: torch.Tensor, path: str, module: nn.Module, embedding: float) -> torch.Tensor:
    """Return standard normal values scaled as the parameter's part needs it."""
    kind = type(module).__name__
    if path.endswith("sinks"):
        return values + 1.0
    if isinstance(module, nn.Embedding):
        return values * (1.0 if "pos" in path or "wpe" in path else embedding)
    if "bias" in path:
        return 0.4 * values
    if "Router" in kind:
        return values * (2.0 / values.shape[-1] ** 0.5)
    return values * (gain(path) / fan_in(values, kind) ** 0.5)


def gain(path: str) -> float:
    """Return the standard deviation of a linear map's outputs."""
    return next((value for part, value in GAINS if part in path), 1.3)


def fan_in(values: torch.Tensor, kind: str) -> int:
    """Return how many inputs a linear map has, whichever way it is stored."""
    if kind == "Conv1D":
        return values.shape[0]
    return values.shape[-2] if kind == "GptOssExperts" else values.shape[-1]


def neutral(kind: str, *, unit_offset: bool) -> float:
    """Return the value of a parameter that switches it off, for modules of this kind."""
    return 1.0 if "Norm" in kind and not unit_offset else 0.0

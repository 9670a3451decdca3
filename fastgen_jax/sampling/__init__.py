"""Logits rows to tokens and log-probabilities, inside the compiled step.

``check_limits`` at submission, ``pack_row`` and ``write_row`` at admission, ``sample`` and
``append_tokens`` in every step.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastgen_jax.sampling.packing import pack_row
from fastgen_jax.sampling.row_limits import RowLimits, check_limits

if TYPE_CHECKING:
    from fastgen_jax.sampling.logprobs import TokenLogprobs, token_logprobs, wanted_logprobs
    from fastgen_jax.sampling.row_settings import wants_logprobs
    from fastgen_jax.sampling.row_state import RowState, append_tokens, init_row_state, write_row
    from fastgen_jax.sampling.sampler import sample

__all__ = [
    "RowLimits",
    "RowState",
    "TokenLogprobs",
    "append_tokens",
    "check_limits",
    "init_row_state",
    "pack_row",
    "sample",
    "token_logprobs",
    "wanted_logprobs",
    "wants_logprobs",
    "write_row",
]

# These need jax; the engine and its test doubles must import without it.
_LAZY = {
    "RowState": "row_state",
    "TokenLogprobs": "logprobs",
    "append_tokens": "row_state",
    "init_row_state": "row_state",
    "sample": "sampler",
    "token_logprobs": "logprobs",
    "wanted_logprobs": "logprobs",
    "wants_logprobs": "row_settings",
    "write_row": "row_state",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastgen_jax.sampling.{_LAZY[name]}"), name)

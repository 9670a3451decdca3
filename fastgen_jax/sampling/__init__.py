"""Logits rows to tokens and log-probabilities, inside the compiled step.

``check_limits`` at submission, ``pack_row`` and ``write_row`` at admission, ``sample`` and
``append_tokens`` in every step.
"""

from fastgen_jax.sampling.logprobs import TokenLogprobs, token_logprobs, wanted_logprobs
from fastgen_jax.sampling.packing import pack_row
from fastgen_jax.sampling.row_limits import RowLimits, check_limits
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

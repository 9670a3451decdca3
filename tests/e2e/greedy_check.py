"""Continuations held equal to the committed ones of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from fastgen_jax import RequestOutput

# Two float32 implementations may order tokens differently where they are this close.
CLOSE_MARGIN = 1e-3
LOGPROB_TOLERANCE = 5e-3


def check_greedy(outputs: Sequence[RequestOutput], prompts: Sequence[dict[str, Any]]) -> None:
    """All tokens are the same, and their log-probabilities nearly."""
    num_equal = 0
    for output, prompt in zip(outputs, prompts, strict=True):
        found, expected = list(output.outputs[0].token_ids), prompt["token_ids"]
        same = [a == b for a, b in zip(found, expected, strict=True)]
        first_other = same.index(False) if False in same else len(same)
        num_equal += first_other == len(same)
        if first_other < len(same):
            assert prompt["margins"][first_other] < CLOSE_MARGIN
        logprobs = output.outputs[0].logprobs or ()
        for i in range(first_other):
            assert logprobs[i][found[i]].logprob == pytest.approx(
                prompt["logprobs"][i], abs=LOGPROB_TOLERANCE
            )
    assert num_equal == len(outputs), "no margin of the committed references is close"

"""Stand-ins for a model, a tokenizer and a device: try policies and sizes without weights."""

from fastgen_jax.testing.byte_tokenizer import ByteTokenizer
from fastgen_jax.testing.fake_engine import FakeEngine, fake_engine
from fastgen_jax.testing.fake_executor import FakeDeviceError, FakeEvent, FakeExecutor, Faults
from fastgen_jax.testing.fake_tokens import (
    FakeLogprobs,
    NextToken,
    fake_logprobs,
    hashed_tokens,
    history_hash,
    scripted_tokens,
)
from fastgen_jax.testing.policy_contract import PolicyContract

__all__ = [
    "ByteTokenizer",
    "FakeDeviceError",
    "FakeEngine",
    "FakeEvent",
    "FakeExecutor",
    "FakeLogprobs",
    "Faults",
    "NextToken",
    "PolicyContract",
    "fake_engine",
    "fake_logprobs",
    "hashed_tokens",
    "history_hash",
    "scripted_tokens",
]

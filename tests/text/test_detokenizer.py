"""Streaming: the pieces join to the full decode, and no piece ends within a character."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgen_jax.testing.byte_tokenizer import ByteTokenizer
from fastgen_jax.text import (
    IncrementalDetokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    tokenizer_from_gguf,
)
from fastgen_jax.text.tokenizer_settings import TokenizerSettings

FROM_FIXTURE = [HealthCheck.function_scoped_fixture]
# Bytes that begin, continue and break characters, far oftener than chance would have them.
tricky_bytes = st.sampled_from([0x41, 0x80, 0xA0, 0xBD, 0xC3, 0xE4, 0xE2, 0xF0, 0x9F, 0xFF, 257])


def stream(
    tokenizer: Tokenizer, ids: Sequence[int], *, chunk: int = 1, skip: bool = True
) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    deltas = [detokenizer.append(ids[i : i + chunk]) for i in range(0, len(ids), chunk)]
    deltas.append(detokenizer.finish())
    assert detokenizer.text == "".join(deltas)
    return deltas


class CountingTokenizer(ByteTokenizer):
    """Counts the ids it is asked to decode."""

    decoded = 0

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        self.decoded += len(token_ids)
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens)


@given(
    ids=st.lists(tricky_bytes | st.integers(0, 300), max_size=80),
    chunk=st.integers(1, 5),
    skip=st.booleans(),
)
@settings(max_examples=300)
def test_random_bytes_join_to_the_full_decode(ids: list[int], chunk: int, skip: bool) -> None:
    tokenizer = ByteTokenizer()
    deltas = stream(tokenizer, ids, chunk=chunk, skip=skip)
    assert "".join(deltas) == tokenizer.decode(ids, skip_special_tokens=skip)


@given(ids=st.lists(tricky_bytes, min_size=60, max_size=120))
def test_long_invalid_runs_join_to_the_full_decode(ids: list[int]) -> None:
    tokenizer = ByteTokenizer()
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@given(text=st.text(max_size=40))
def test_valid_text_comes_out_whole_characters_at_a_time(text: str) -> None:
    tokenizer = ByteTokenizer()
    deltas = stream(tokenizer, tokenizer.encode(text))
    assert "".join(deltas) == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in delta for delta in deltas)
        assert [delta for delta in deltas if delta] == list(text)


def test_incomplete_character_waits_and_is_given_up_at_the_end() -> None:
    detokenizer = IncrementalDetokenizer(ByteTokenizer())
    assert [detokenizer.append([byte]) for byte in "😀".encode()] == ["", "", "", "😀"]
    assert detokenizer.append("é".encode()[:1]) == ""
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.finish() == ""
    assert detokenizer.text == "😀\ufffd"
    with pytest.raises(RuntimeError, match="finish"):
        detokenizer.append([65])


def test_impossible_character_is_released_with_the_next_text() -> None:
    assert stream(ByteTokenizer(), [0xFF, 0x41]) == ["", "\ufffdA", ""]


@pytest.mark.parametrize("ids", [[0x61], [0xFF], [0xE4], [0xE4, 0xBD], [0x61, 257]])
def test_cost_per_token_does_not_grow(ids: list[int]) -> None:
    tokenizer = CountingTokenizer()
    detokenizer = IncrementalDetokenizer(tokenizer)
    stream_ids = ids * 2000
    for token_id in stream_ids:
        detokenizer.append([token_id])
    assert tokenizer.decoded < 100 * len(stream_ids)


def test_prompt_is_context_but_not_output(sentencepiece_model: bytes) -> None:
    tokenizer = SentencePieceTokenizer(sentencepiece_model, TokenizerSettings())
    ids = tokenizer.encode("hello world the dog", add_special_tokens=False)
    cut = len(tokenizer.encode("hello world", add_special_tokens=False))
    continued = IncrementalDetokenizer(tokenizer, prompt_token_ids=ids[:cut])
    fresh = IncrementalDetokenizer(tokenizer)
    for token_id in ids[cut:]:
        continued.append([token_id])
        fresh.append([token_id])
    assert continued.text + continued.finish() == " the dog"
    assert fresh.text + fresh.finish() == "the dog"


def test_prompt_ending_within_a_character_is_completed() -> None:
    head, tail = "a你".encode()[:2], "你".encode()[1:]
    detokenizer = IncrementalDetokenizer(ByteTokenizer(), prompt_token_ids=list(head))
    assert [detokenizer.append([byte]) for byte in tail] == ["", "你"]


def test_literal_replacement_character_of_the_prompt_is_not_repeated() -> None:
    prompt = list("a\ufffd".encode())
    detokenizer = IncrementalDetokenizer(ByteTokenizer(), prompt_token_ids=prompt)
    assert detokenizer.append(list(b"bc")) == "bc"


@given(data=st.data())
@settings(suppress_health_check=FROM_FIXTURE)
def test_sentencepiece_random_ids(sentencepiece_model: bytes, data: st.DataObject) -> None:
    tokenizer = SentencePieceTokenizer(sentencepiece_model, TokenizerSettings())
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 5), max_size=60))
    for skip in (True, False):
        joined = "".join(stream(tokenizer, ids, skip=skip))
        assert joined == tokenizer.decode(ids, skip_special_tokens=skip)


def test_sentencepiece_lone_space_first_is_not_lost(sentencepiece_model: bytes) -> None:
    tokenizer = SentencePieceTokenizer(sentencepiece_model, TokenizerSettings())
    ids = tokenizer.encode("   the  dog \n x", add_special_tokens=False)
    assert "".join(stream(tokenizer, ids)) == "   the  dog \n x"


def test_byte_fallback_decoder_streams_whole_characters(byte_fallback: Tokenizer) -> None:
    text = "a你😀é b"
    deltas = stream(byte_fallback, byte_fallback.encode(text))
    assert "".join(deltas) == text
    assert all("\ufffd" not in delta for delta in deltas)


@pytest.fixture
def byte_fallback() -> Tokenizer:
    """Llama 2's decoder in the ``tokenizers`` library: one replacement character for each byte."""
    from fastgen_jax.text import HuggingFaceTokenizer

    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "a": 257, "b": 258}
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[], byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    decoders = tokenizers.decoders
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return HuggingFaceTokenizer(backend, TokenizerSettings())


@pytest.fixture(scope="session")
def smollm2(smollm2_fields: dict[str, object]) -> Tokenizer:
    tokenizer = tokenizer_from_gguf(smollm2_fields)
    assert tokenizer is not None
    return tokenizer


@pytest.mark.real_model
@given(ids=st.lists(st.integers(0, 49151), max_size=40), chunk=st.integers(1, 4))
@settings(suppress_health_check=FROM_FIXTURE)
def test_real_tokenizer_random_ids(smollm2: Tokenizer, ids: list[int], chunk: int) -> None:
    assert "".join(stream(smollm2, ids, chunk=chunk)) == smollm2.decode(ids)


@pytest.mark.real_model
@given(text=st.text(max_size=60))
@settings(suppress_health_check=FROM_FIXTURE)
def test_real_tokenizer_random_text(smollm2: Tokenizer, text: str) -> None:
    ids = smollm2.encode(text)
    assert "".join(stream(smollm2, ids)) == smollm2.decode(ids)

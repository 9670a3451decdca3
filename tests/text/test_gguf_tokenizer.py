"""Tokenizers from GGUF metadata: equal to those of the libraries the vocabularies came from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgen_jax.errors import TokenizerError
from fastgen_jax.text import Tokenizer, tokenizer_from_gguf
from fastgen_jax.text.pre_tokenizers import splitting_rule

REFERENCE = Path(__file__).parents[1] / "references" / "smollm2_tokenizer.json"
Fields = dict[str, object]


def build(fields: Fields) -> Tokenizer:
    tokenizer = tokenizer_from_gguf(fields)
    assert tokenizer is not None
    return tokenizer


def words(rule: str, text: str) -> list[str]:
    """How ``rule`` cuts ``text``, spelled in characters again."""
    spans = splitting_rule(rule).pre_tokenizer().pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in spans]


@pytest.fixture
def byte_level_fields(byte_level_backend: str) -> Fields:
    model = json.loads(byte_level_backend)["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


@pytest.fixture
def sentencepiece_fields(sentencepiece_model: bytes) -> Fields:
    processor = sentencepiece.SentencePieceProcessor()
    processor.load_from_serialized_proto(sentencepiece_model)
    ids = range(processor.get_piece_size())
    types = [6 if processor.is_byte(i) else 3 if processor.is_control(i) else 1 for i in ids]
    types[0] = 2
    types[processor.piece_to_id("<user>")] = 4
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_no_tokenizer_metadata_gives_none() -> None:
    assert tokenizer_from_gguf({"general.architecture": "llama"}) is None


class TestByteLevel:
    @given(text=st.text(max_size=40))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_equals_its_tokenizer_json(
        self, byte_level_fields: Fields, byte_level_backend: str, text: str
    ) -> None:
        backend = tokenizers.Tokenizer.from_str(byte_level_backend)
        tokenizer = build(byte_level_fields)
        ids = tokenizer.encode(text)
        assert ids == backend.encode(text).ids
        assert tokenizer.decode(ids) == text

    def test_special_tokens_and_ends(self, byte_level_fields: Fields) -> None:
        extra = {"tokenizer.ggml.eot_token_id": 2, "tokenizer.chat_template": "t"}
        tokenizer = build(byte_level_fields | extra)
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin|>", "<|end|>")
        assert tokenizer.eos_token_ids == (1, 2)
        assert tokenizer.special_token_ids == {0, 1, 2}
        assert tokenizer.chat_template == "t"
        assert tokenizer.encode("a<|turn|>")[-1] == 2
        assert tokenizer.decode([0, 2]) == ""

    @pytest.mark.parametrize(
        ("pre", "flag", "bos"),
        [
            ("gpt-2", None, []),
            ("gpt-2", True, [0]),
            ("llama-bpe", None, [0]),
            ("llama3", False, []),
        ],
    )
    def test_bos(
        self, byte_level_fields: Fields, pre: str, flag: bool | None, bos: list[int]
    ) -> None:
        fields = byte_level_fields | {"tokenizer.ggml.pre": pre}
        if flag is not None:
            fields["tokenizer.ggml.add_bos_token"] = flag
        tokenizer = build(fields)
        assert tokenizer.encode("the") == bos + tokenizer.encode("the", add_special_tokens=False)

    def test_user_defined_tokens_match_whole_but_are_text(self, byte_level_fields: Fields) -> None:
        types = byte_level_fields["tokenizer.ggml.token_type"]
        assert isinstance(types, list)
        types[2] = 4
        tokenizer = build(byte_level_fields)
        ids = tokenizer.encode("a<|turn|>b")
        assert 2 in ids
        assert tokenizer.decode(ids) == "a<|turn|>b"

    @pytest.mark.parametrize("pre", ["starling", "smollm3", ""])
    def test_unknown_pre_tokenizer_is_named(self, byte_level_fields: Fields, pre: str) -> None:
        with pytest.raises(TokenizerError, match=f"tokenizer.ggml.pre={pre!r}"):
            tokenizer_from_gguf(byte_level_fields | {"tokenizer.ggml.pre": pre})

    def test_missing_pre_tokenizer_is_not_guessed(self, byte_level_fields: Fields) -> None:
        del byte_level_fields["tokenizer.ggml.pre"]
        with pytest.raises(TokenizerError, match="is missing"):
            tokenizer_from_gguf(byte_level_fields)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("tokenizer.ggml.tokens", ["a", "b", "a"]),
            ("tokenizer.ggml.tokens", ["a", 2]),
            ("tokenizer.ggml.tokens", None),
            ("tokenizer.ggml.merges", ["ab"]),
            ("tokenizer.ggml.merges", ["q absent"]),
            ("tokenizer.ggml.merges", None),
            ("tokenizer.ggml.token_type", [1]),
            ("tokenizer.ggml.token_type", [99] * 380),
            ("tokenizer.ggml.add_bos_token", "yes"),
            ("tokenizer.ggml.eos_token_id", 400),
            ("tokenizer.ggml.pre", 7),
        ],
    )
    def test_damage_names_the_key(self, byte_level_fields: Fields, key: str, value: object) -> None:
        with pytest.raises(TokenizerError) as caught:
            tokenizer_from_gguf(byte_level_fields | {key: value})
        assert caught.value.field == key
        assert caught.value.remedy


class TestSplittingRules:
    def test_digits(self) -> None:
        assert words("gpt-2", "a 12345") == words("default", "a 12345") == ["a", " 12345"]
        assert words("smollm", "a 12345") == ["a", " ", "1", "2", "3", "4", "5"]
        assert words("llama-bpe", "a 12345") == ["a", " ", "123", "45"]
        assert words("qwen2", "a 12345") == ["a", " ", "1", "2", "3", "4", "5"]

    def test_contractions_and_line_breaks(self) -> None:
        assert words("gpt-2", "IT'S it's\n\nx") == ["IT", "'", "S", " it", "'s", "\n", "\n", "x"]
        for rule in ("llama-bpe", "qwen2"):
            assert words(rule, "IT'S it's\n\nx;\ny") == [
                "IT", "'S", " it", "'s", "\n\n", "x", ";\n", "y",
            ]  # fmt: skip

    def test_qwen2_composes_unicode(self, byte_level_fields: Fields) -> None:
        tokenizer = build(byte_level_fields | {"tokenizer.ggml.pre": "qwen2"})
        assert tokenizer.decode(tokenizer.encode("e\u0301")) == "\u00e9"


class TestSentencePiece:
    @given(text=st.text(max_size=40) | st.text(" abcdeth\n<user>", max_size=60))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_equals_the_model_it_came_from(
        self, sentencepiece_fields: Fields, sentencepiece_model: bytes, text: str
    ) -> None:
        processor = sentencepiece.SentencePieceProcessor()
        processor.load_from_serialized_proto(sentencepiece_model)
        tokenizer = build(sentencepiece_fields)
        ids = tokenizer.encode(text)
        assert ids == [1, *processor.encode(text)]
        assert tokenizer.decode(ids) == processor.decode(ids)

    def test_space_prefix_can_be_off(self, sentencepiece_fields: Fields) -> None:
        off = {"tokenizer.ggml.add_space_prefix": False}
        tokenizer = build(sentencepiece_fields | off)
        plain = build(sentencepiece_fields)
        assert tokenizer.encode(" hello") == plain.encode("hello")
        assert tokenizer.decode(tokenizer.encode(" hello")) == " hello"

    def test_special_tokens(self, sentencepiece_fields: Fields) -> None:
        tokenizer = build(sentencepiece_fields)
        assert tokenizer.bos_token == "<s>"
        assert tokenizer.eos_token_ids == (2,)
        ids = tokenizer.encode("hello</s>", add_special_tokens=False)
        assert ids[-1] == 2
        assert tokenizer.decode(ids, skip_special_tokens=False) == "hello</s>"

    def test_missing_scores(self, sentencepiece_fields: Fields) -> None:
        del sentencepiece_fields["tokenizer.ggml.scores"]
        with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.scores"):
            tokenizer_from_gguf(sentencepiece_fields)

    def test_other_models_are_refused(self, sentencepiece_fields: Fields) -> None:
        with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.model='t5'"):
            tokenizer_from_gguf(sentencepiece_fields | {"tokenizer.ggml.model": "t5"})


@pytest.mark.real_model
class TestSmolLM2:
    def test_equals_transformers(self, smollm2_fields: Fields) -> None:
        tokenizer = build(smollm2_fields)
        for case in json.loads(REFERENCE.read_text(encoding="utf-8"))["cases"]:
            ids = tokenizer.encode(case["text"])
            assert ids == case["ids"], case["text"]
            assert tokenizer.decode(ids) == case["decoded"]
            assert tokenizer.decode(ids, skip_special_tokens=False) == case["decoded_with_special"]

    def test_chat_prompts_encode_as_in_transformers(self, smollm2_fields: Fields) -> None:
        tokenizer = build(smollm2_fields)
        for chat in json.loads(REFERENCE.read_text(encoding="utf-8"))["chats"]:
            assert tokenizer.encode(chat["prompt"], add_special_tokens=False) == chat["ids"]

    def test_properties(self, smollm2_fields: Fields) -> None:
        tokenizer = build(smollm2_fields)
        assert tokenizer.vocab_size == 49152
        assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, (2,))
        assert tokenizer.special_token_ids == frozenset(range(17))
        assert tokenizer.encode("Hello") == [19556]  # add_bos_token is false

"""Tokenizers of a checkpoint directory: which files count, and what they change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgen_jax.errors import TokenizerError
from fastgen_jax.testing.byte_tokenizer import ByteTokenizer
from fastgen_jax.text import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
)
from fastgen_jax.text.tokenizer_settings import TokenizerSettings

BEGIN, END, TURN = 0, 1, 2  # ids of the special tokens of byte_level_backend


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def load(directory: Path) -> Tokenizer:
    tokenizer = load_tokenizer(directory)
    assert tokenizer is not None
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


@pytest.fixture
def json_directory(tmp_path: Path, byte_level_backend: str) -> Path:
    (tmp_path / "tokenizer.json").write_text(byte_level_backend, encoding="utf-8")
    return tmp_path


@pytest.fixture
def model_directory(tmp_path: Path, sentencepiece_model: bytes) -> Path:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model)
    return tmp_path


class TestDirectory:
    def test_no_tokenizer_files_give_none(self, tmp_path: Path) -> None:
        write_json(tmp_path / "config.json", {})
        assert load_tokenizer(tmp_path) is None

    def test_incomplete_directory_is_an_error(self, tmp_path: Path) -> None:
        write_json(tmp_path / "tokenizer_config.json", {})
        with pytest.raises(TokenizerError, match=r"tokenizer_config\.json but neither"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize("content", ["", "{", "{}", "version https://git-lfs.github.com/spec"])
    def test_corrupt_tokenizer_json(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(TokenizerError, match="download the file again"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256))])
    def test_corrupt_tokenizer_model(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(TokenizerError, match="no sentencepiece model"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
    def test_corrupt_settings(self, json_directory: Path, name: str) -> None:
        (json_directory / name).write_text("[1, 2")
        with pytest.raises(TokenizerError, match=name):
            load_tokenizer(json_directory)

    def test_tokenizer_json_is_preferred(
        self, json_directory: Path, sentencepiece_model: bytes
    ) -> None:
        (json_directory / "tokenizer.model").write_bytes(sentencepiece_model)
        assert isinstance(load(json_directory), HuggingFaceTokenizer)


class TestHuggingFace:
    def test_without_settings(self, json_directory: Path) -> None:
        tokenizer = load(json_directory)
        text = "hello  wörld 😀\n"
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.bos_token_id is None
        assert tokenizer.eos_token_ids == ()
        assert tokenizer.chat_template is None
        assert tokenizer.special_token_ids == {BEGIN, END, TURN}
        assert tokenizer.id_to_token(TURN) == "<|turn|>"
        assert tokenizer.id_to_token(tokenizer.vocab_size) is None
        assert tokenizer.id_to_token(-1) is None

    def test_special_tokens_in_the_text(self, json_directory: Path) -> None:
        tokenizer = load(json_directory)
        ids = tokenizer.encode("<|begin|>a<|turn|>", add_special_tokens=False)
        assert (ids[0], ids[-1]) == (BEGIN, TURN)
        assert tokenizer.decode(ids) == "a"
        assert tokenizer.decode(ids, skip_special_tokens=False) == "<|begin|>a<|turn|>"

    def test_end_ids_of_generation_config_come_first(self, json_directory: Path) -> None:
        write_json(json_directory / "tokenizer_config.json", {"eos_token": "<|end|>"})
        write_json(json_directory / "generation_config.json", {"eos_token_id": [TURN, END]})
        tokenizer = load(json_directory)
        assert tokenizer.eos_token_ids == (TURN, END)
        assert tokenizer.eos_token == "<|end|>"

    def test_token_objects_and_special_tokens_map(self, json_directory: Path) -> None:
        token_map = {"bos_token": {"content": "<|begin|>"}, "eos_token": "<|turn|>"}
        write_json(json_directory / "special_tokens_map.json", token_map)
        write_json(json_directory / "tokenizer_config.json", {"eos_token": {"content": "<|end|>"}})
        tokenizer = load(json_directory)
        assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|begin|>", BEGIN)
        assert tokenizer.eos_token_ids == (END,)

    @pytest.mark.parametrize(("add_bos", "first"), [(True, [BEGIN]), (False, []), (None, [TURN])])
    def test_add_bos_token_overrides_the_post_processor(
        self, tmp_path: Path, byte_level_backend: str, add_bos: bool | None, first: list[int]
    ) -> None:
        backend = tokenizers.Tokenizer.from_str(byte_level_backend)
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|turn|> $A", special_tokens=[("<|turn|>", TURN)]
        )
        backend.enable_truncation(3)
        backend.save(str(tmp_path / "tokenizer.json"))
        config = {"bos_token": "<|begin|>", "add_bos_token": add_bos}
        write_json(tmp_path / "tokenizer_config.json", config)
        tokenizer = load(tmp_path)
        plain = tokenizer.encode("hello brown fox!?!", add_special_tokens=False)
        assert len(plain) > 3
        assert tokenizer.encode("hello brown fox!?!") == first + plain

    def test_settings_make_a_plain_token_special(self, json_directory: Path) -> None:
        write_json(json_directory / "tokenizer_config.json", {"eos_token": "x"})
        tokenizer = load(json_directory)
        (eos,) = tokenizer.eos_token_ids
        assert eos in tokenizer.special_token_ids
        assert tokenizer.encode("ax")[-1] == eos

    def test_unknown_special_token(self, json_directory: Path) -> None:
        write_json(json_directory / "tokenizer_config.json", {"eos_token": "</absent>"})
        with pytest.raises(TokenizerError, match="eos_token='</absent>'"):
            load_tokenizer(json_directory)

    def test_chat_templates(self, json_directory: Path) -> None:
        several = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
        write_json(json_directory / "tokenizer_config.json", {"chat_template": "plain"})
        assert load(json_directory).chat_template == "plain"
        write_json(json_directory / "tokenizer_config.json", {"chat_template": several})
        assert load(json_directory).chat_template == "d"
        (json_directory / "chat_template.jinja").write_text("file", encoding="utf-8")
        assert load(json_directory).chat_template == "file"


class TestSentencePiece:
    def test_defaults_are_those_of_llama(self, model_directory: Path) -> None:
        tokenizer = load(model_directory)
        assert isinstance(tokenizer, SentencePieceTokenizer)
        processor = sentencepiece.SentencePieceProcessor()
        processor.load(str(model_directory / "tokenizer.model"))
        text = "hello  world 😀 <user>"
        assert tokenizer.encode(text) == [1, *processor.encode(text)]
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
        assert tokenizer.eos_token_ids == (2,)
        assert tokenizer.special_token_ids == {0, 1, 2}
        assert tokenizer.vocab_size == processor.get_piece_size()

    def test_added_tokens_and_flags(
        self, model_directory: Path, sentencepiece_model: bytes
    ) -> None:
        bare = SentencePieceTokenizer(sentencepiece_model, TokenizerSettings())
        turn, think = bare.vocab_size, bare.vocab_size + 1
        config = {
            "add_bos_token": False,
            "add_eos_token": True,
            "eos_token": "<|turn|>",
            "added_tokens_decoder": {
                str(turn): {"content": "<|turn|>", "special": True},
                str(think): {"content": "<think>", "special": False},
            },
        }
        write_json(model_directory / "tokenizer_config.json", config)
        tokenizer = load(model_directory)
        assert tokenizer.vocab_size == think + 1
        assert tokenizer.eos_token_ids == (turn,)
        ids = tokenizer.encode("<think>hello")
        hello = bare.encode("hello", add_special_tokens=False)
        assert ids == [think, *hello, turn]
        assert tokenizer.decode(ids) == "<think> hello"
        assert tokenizer.id_to_token(turn) == "<|turn|>"
        assert tokenizer.id_to_token(think + 1) is None

    def test_prefix_after_special_tokens(self, sentencepiece_model: bytes) -> None:
        legacy = SentencePieceTokenizer(sentencepiece_model, TokenizerSettings())
        modern = SentencePieceTokenizer(
            sentencepiece_model, TokenizerSettings(prefix_after_special=False)
        )
        text = "<s>hello</s>world"
        assert legacy.decode(legacy.encode(text), skip_special_tokens=True) == "hello world"
        assert modern.decode(modern.encode(text), skip_special_tokens=True) == "helloworld"
        assert modern.encode("hello") == legacy.encode("hello")

    def test_unknown_special_token(self, sentencepiece_model: bytes) -> None:
        with pytest.raises(TokenizerError, match="bos_token='<absent>'"):
            SentencePieceTokenizer(sentencepiece_model, TokenizerSettings(bos_token="<absent>"))

    @given(text=st.text(max_size=40))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_round_trip(self, sentencepiece_model: bytes, text: str) -> None:
        processor = sentencepiece.SentencePieceProcessor()
        processor.load_from_serialized_proto(sentencepiece_model)
        tokenizer = SentencePieceTokenizer(sentencepiece_model, TokenizerSettings())
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == processor.encode(text)
        assert tokenizer.decode(ids) == processor.decode(ids)


class TestBytes:
    @given(text=st.text())
    def test_round_trip(self, text: str) -> None:
        tokenizer = ByteTokenizer()
        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_protocol_and_special_tokens(self) -> None:
        tokenizer = ByteTokenizer()
        assert isinstance(tokenizer, Tokenizer)
        assert tokenizer.encode("A") == [256, 65]
        assert tokenizer.decode([256, 65, 257, 999, -1], skip_special_tokens=False) == "<bos>A<eos>"
        assert [tokenizer.id_to_token(i) for i in (65, 258, 259)] == ["<0x41>", "<pad>", None]

"""The tokenizer that a GGUF file's own metadata describes."""

from __future__ import annotations

from collections.abc import Mapping

import tokenizers

from fastgen_jax.errors import TokenizerError
from fastgen_jax.text.gguf_metadata import GgufVocabulary
from fastgen_jax.text.huggingface_tokenizer import HuggingFaceTokenizer
from fastgen_jax.text.pre_tokenizers import splitting_rule
from fastgen_jax.text.sentencepiece_model import BpeModel, Piece, PieceType
from fastgen_jax.text.sentencepiece_tokenizer import SentencePieceTokenizer
from fastgen_jax.text.tokenizer import Tokenizer
from fastgen_jax.text.tokenizer_settings import TokenizerSettings


def tokenizer_from_gguf(fields: Mapping[str, object]) -> Tokenizer | None:
    """The tokenizer in GGUF metadata, or None where ``fields`` holds no tokenizer.

    ``fields`` maps keys such as "tokenizer.ggml.tokens" to plain Python values. Supported are the
    models "gpt2" (byte-level BPE) and "llama" (sentencepiece BPE); anything else, an unknown
    pre-tokenizer, or a damaged vocabulary raises TokenizerError.
    """
    if "tokenizer.ggml.model" not in fields and "tokenizer.ggml.tokens" not in fields:
        return None
    vocabulary = GgufVocabulary(fields)
    model = vocabulary.text("tokenizer.ggml.model")
    if model == "gpt2":
        return _byte_level(vocabulary)
    if model == "llama":
        return _sentencepiece(vocabulary)
    raise TokenizerError(
        "is a kind of vocabulary that can't be read from GGUF metadata",
        field="tokenizer.ggml.model",
        value=model,
        remedy="use a file with a gpt2 or llama vocabulary, or put tokenizer.json beside it",
    )


def _byte_level(vocabulary: GgufVocabulary) -> HuggingFaceTokenizer:
    """Byte-level BPE, put together as the model's own tokenizer.json has it."""
    rule = splitting_rule(vocabulary.optional_text("tokenizer.ggml.pre"))
    tokens, merges = vocabulary.tokens(), vocabulary.merges()
    try:
        model = tokenizers.models.BPE(
            vocab={token: token_id for token_id, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=rule.whole_words_first,
        )
    except Exception as error:  # the library raises the bare Exception class
        raise vocabulary.damaged("tokenizer.ggml.merges", str(error)) from error
    backend = tokenizers.Tokenizer(model)
    if rule.composes_unicode:
        backend.normalizer = tokenizers.normalizers.NFC()
    backend.pre_tokenizer = rule.pre_tokenizer()
    backend.decoder = tokenizers.decoders.ByteLevel()
    _add_whole_tokens(backend, vocabulary)
    return HuggingFaceTokenizer(backend, _settings(vocabulary, add_bos=rule.adds_bos))


def _add_whole_tokens(backend: tokenizers.Tokenizer, vocabulary: GgufVocabulary) -> None:
    """Makes control and user-defined tokens match whole, in the order of their ids."""
    pairs = list(zip(vocabulary.tokens(), vocabulary.types(), strict=True))
    for kind, special in ((PieceType.CONTROL, True), (PieceType.USER_DEFINED, False)):
        added = [
            tokenizers.AddedToken(token, normalized=False, special=special)
            for token, token_type in pairs
            if token_type == kind
        ]
        if special:
            backend.add_special_tokens(added)
        else:
            backend.add_tokens(added)


def _sentencepiece(vocabulary: GgufVocabulary) -> SentencePieceTokenizer:
    """A sentencepiece model rebuilt from its pieces, and run by the sentencepiece library."""
    tokens, types = vocabulary.tokens(), list(vocabulary.types())
    unknown_id = vocabulary.token_id("unknown")
    if PieceType.UNKNOWN not in types and unknown_id is not None:
        types[unknown_id] = PieceType.UNKNOWN
    entries = zip(tokens, vocabulary.scores(), types, strict=True)
    model = BpeModel(
        pieces=tuple(
            Piece(text=_in_model(text, kind), score=score, type=kind)
            for text, score, kind in entries
        ),
        bos_id=vocabulary.token_id("bos"),
        eos_id=vocabulary.token_id("eos"),
        add_dummy_prefix=vocabulary.flag("tokenizer.ggml.add_space_prefix", default=True),
        remove_extra_whitespaces=vocabulary.flag(
            "tokenizer.ggml.remove_extra_whitespaces", default=False
        ),
        charsmap=vocabulary.charsmap(),
    )
    return SentencePieceTokenizer(model.serialize(), _settings(vocabulary, add_bos=True))


def _in_model(text: str, kind: PieceType) -> str:
    """A piece as the model had it: files write the spaces of user-defined pieces out."""
    return text.replace(" ", "\u2581") if kind == PieceType.USER_DEFINED else text


def _settings(vocabulary: GgufVocabulary, *, add_bos: bool) -> TokenizerSettings:
    """The file's special tokens; ``add_bos`` is llama.cpp's default where the file has none."""
    tokens = vocabulary.tokens()
    bos_id, eos_id = vocabulary.token_id("bos"), vocabulary.token_id("eos")
    ends = (eos_id, vocabulary.token_id("eot"), vocabulary.token_id("eom"))
    return TokenizerSettings(
        bos_token=None if bos_id is None else tokens[bos_id],
        eos_token=None if eos_id is None else tokens[eos_id],
        eos_token_ids=tuple(token_id for token_id in ends if token_id is not None),
        add_bos=vocabulary.flag("tokenizer.ggml.add_bos_token", default=add_bos),
        add_eos=vocabulary.flag("tokenizer.ggml.add_eos_token", default=False),
        chat_template=vocabulary.optional_text("tokenizer.chat_template"),
    )

"""Text in and out of the engine: tokenizers, chat templates, streaming and stop strings."""

from fastgen_jax.text.chat import ChatTemplate, render_chat
from fastgen_jax.text.detokenizer import IncrementalDetokenizer
from fastgen_jax.text.gguf_tokenizer import tokenizer_from_gguf
from fastgen_jax.text.huggingface_tokenizer import HuggingFaceTokenizer
from fastgen_jax.text.sentencepiece_tokenizer import SentencePieceTokenizer
from fastgen_jax.text.stop import StopChecker, StopResult
from fastgen_jax.text.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "ChatTemplate",
    "HuggingFaceTokenizer",
    "IncrementalDetokenizer",
    "SentencePieceTokenizer",
    "StopChecker",
    "StopResult",
    "Tokenizer",
    "load_tokenizer",
    "render_chat",
    "tokenizer_from_gguf",
]

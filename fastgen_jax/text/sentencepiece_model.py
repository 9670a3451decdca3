"""Serialized sentencepiece models: written from a vocabulary, and changed in one setting.

The fields are those of sentencepiece_model.proto; the encoding is the protocol buffers wire format
(https://protobuf.dev/programming-guides/encoding). Writing these few fields by hand spares a
dependency on the protobuf runtime and its version conflicts.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

# Field numbers in ModelProto, SentencePiece, TrainerSpec and NormalizerSpec.
_MODEL_PIECES, _MODEL_TRAINER, _MODEL_NORMALIZER = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_TRAINER_MODEL_TYPE, _TRAINER_VOCAB_SIZE, _TRAINER_BYTE_FALLBACK = 3, 4, 35
_TRAINER_UNK_ID, _TRAINER_BOS_ID, _TRAINER_EOS_ID, _TRAINER_PAD_ID = 40, 41, 42, 43
_TRAINER_UNK_PIECE, _TRAINER_BOS_PIECE, _TRAINER_EOS_PIECE = 45, 46, 47
_NORMALIZER_NAME, _NORMALIZER_CHARSMAP, _NORMALIZER_DUMMY_PREFIX = 1, 2, 3
_NORMALIZER_REMOVE_SPACES, _NORMALIZER_ESCAPE_SPACES = 4, 5
_MODEL_TYPE_BPE = 2


class PieceType(IntEnum):
    """What a piece is, in sentencepiece's numbering, which GGUF took over."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One vocabulary entry; among possible merges the one with the highest score comes first."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True, slots=True, kw_only=True)
class BpeModel:
    """A byte-pair sentencepiece model; the ids are the positions in ``pieces``."""

    pieces: tuple[Piece, ...]
    bos_id: int | None
    eos_id: int | None
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    charsmap: bytes = b""

    def serialize(self) -> bytes:
        """The model as the bytes of a tokenizer.model file."""
        entries = (_message(_MODEL_PIECES, _piece(piece)) for piece in self.pieces)
        return b"".join(entries) + self._trainer() + self._normalizer()

    def _trainer(self) -> bytes:
        types = [piece.type for piece in self.pieces]
        unk_id = types.index(PieceType.UNKNOWN) if PieceType.UNKNOWN in types else -1
        body = [
            _integer(_TRAINER_MODEL_TYPE, _MODEL_TYPE_BPE),
            _integer(_TRAINER_VOCAB_SIZE, len(self.pieces)),
            _integer(_TRAINER_BYTE_FALLBACK, int(PieceType.BYTE in types)),
            _integer(_TRAINER_UNK_ID, unk_id),
            _integer(_TRAINER_BOS_ID, -1 if self.bos_id is None else self.bos_id),
            _integer(_TRAINER_EOS_ID, -1 if self.eos_id is None else self.eos_id),
            _integer(_TRAINER_PAD_ID, -1),
        ]
        # The library looks its special ids up by these strings, whatever the ids above say.
        named = (
            (_TRAINER_UNK_PIECE, unk_id if unk_id >= 0 else None),
            (_TRAINER_BOS_PIECE, self.bos_id),
            (_TRAINER_EOS_PIECE, self.eos_id),
        )
        for field, token_id in named:
            text = "" if token_id is None else self.pieces[token_id].text
            body.append(_message(field, text.encode()))
        return _message(_MODEL_TRAINER, b"".join(body))

    def _normalizer(self) -> bytes:
        body = (
            _message(_NORMALIZER_NAME, b"identity"),
            _message(_NORMALIZER_CHARSMAP, self.charsmap),
            _integer(_NORMALIZER_DUMMY_PREFIX, int(self.add_dummy_prefix)),
            _integer(_NORMALIZER_REMOVE_SPACES, int(self.remove_extra_whitespaces)),
            _integer(_NORMALIZER_ESCAPE_SPACES, 1),
        )
        return _message(_MODEL_NORMALIZER, b"".join(body))


def without_dummy_prefix(model: bytes) -> bytes:
    """The serialized ``model`` with its space prefix turned off.

    A message that occurs twice in the wire format is merged, the later fields winning.
    """
    return model + _message(_MODEL_NORMALIZER, _integer(_NORMALIZER_DUMMY_PREFIX, 0))


def _piece(piece: Piece) -> bytes:
    score = _varint(_PIECE_SCORE << 3 | 5) + struct.pack("<f", piece.score)
    return _message(_PIECE_TEXT, piece.text.encode()) + score + _integer(_PIECE_TYPE, piece.type)


def _message(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _integer(field: int, value: int) -> bytes:
    # A negative int32 goes out as its 64-bit two's complement.
    return _varint(field << 3) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

"""How weights are stored: the formats of a packed matrix, and the sizes that they give it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

FormatName = Literal["float32", "bfloat16", "int8", "q8_0", "q4_0", "q4_1", "int4"]

PANEL = 16  # output features that lie side by side
GROUP = 32  # input features that share a scale, where a scale isn't a whole column's

_WORD_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """One way to store the weights of L layers of a matrix with K input and N output features.

    Output features lie in panels of 16: panel p, column c is output feature 16 p + c, and there
    are N16 = ceil(N / 16) of them. Down a panel run 32-bit words, each with as many consecutive
    input features of its column as fit. Features beyond N or K have zero codes, scales and mins.

    =========  ==========================  ======================  =============================
    name       codes                       scales (and mins)       a weight is
    =========  ==========================  ======================  =============================
    float32    float32 [L, N16, K, 16]     none                    the code
    bfloat16   bfloat16 [L, N16, K2, 16,   none                    the code
               2], K2 = ceil(K / 2)
    int8       int8 [L, N16, K4, 16, 4],   float32 [L, N16, 16]    scale * code, from -127 on
               K4 = ceil(K / 4)
    q8_0       as int8                     float16 [L, N16, G,     scale * code
                                           16], G = K / 32
    q4_0       int32 [L, N16, G, 4, 16]    as q8_0                 scale * (code - 8)
    q4_1       as q4_0                     as q8_0, mins too       scale * code + min
    int4       as q4_0                     as q4_1                 scale * code + min
    =========  ==========================  ======================  =============================

    Word w of the four that a column's group g of 4-bit codes has holds input feature
    32 g + 8 w + j in its bits 4 j to 4 j + 3. q8_0, q4_0 and q4_1 are GGUF's formats of these
    names, losslessly; int4 is this project's own quantization of dense weights.

    Attributes:
        name: of the format.
        code_dtype: of ``codes``.
        word_values: input features in 32 bits.
        scale_dtype: None where codes are the weights.
        is_grouped: scales belong to 32 input features each, not to a whole column.
        has_mins: there is a minimum beside each scale.
    """

    name: FormatName
    code_dtype: str
    word_values: int
    scale_dtype: str | None = None
    is_grouped: bool = False
    has_mins: bool = False

    @property
    def is_quantized(self) -> bool:
        """Codes are integers, and a scale makes weights of them."""
        return self.scale_dtype is not None

    @property
    def bytes_per_weight(self) -> float:
        """Of codes, and of the groups' scales and mins; a whole column's scale isn't counted."""
        scales = (1 + self.has_mins) * 2 / GROUP if self.is_grouped else 0.0
        return _WORD_BYTES / self.word_values + scales

    def obstacle(self, in_features: int) -> str | None:
        """Why the format can't hold so many input features; None where it can."""
        if self.is_grouped and in_features % GROUP:
            return f"{self.name} needs input features in whole groups of {GROUP}, not {in_features}"
        return None

    def num_words(self, in_features: int) -> int:
        """32-bit words down a column."""
        return -(-in_features // self.word_values)

    def codes_shape(self, num_layers: int, in_features: int, out_features: int) -> tuple[int, ...]:
        """The shape of ``codes``."""
        words = self.num_words(in_features)
        panels = (num_layers, num_panels(out_features))
        if self.code_dtype == "int32":
            return (*panels, in_features // GROUP, 4, PANEL)
        inside = {"float32": (), "bfloat16": (2,), "int8": (4,)}[self.code_dtype]
        return (*panels, words, PANEL, *inside)

    def words_shape(
        self, num_layers: int, in_features: int, out_features: int
    ) -> tuple[int, int, int, int]:
        """The shape of ``codes`` seen as 32-bit words."""
        return (num_layers, num_panels(out_features), self.num_words(in_features), PANEL)

    def scales_shape(self, num_layers: int, in_features: int, out_features: int) -> tuple[int, ...]:
        """The shape of ``scales`` and ``mins`` where the format has them."""
        panels = (num_layers, num_panels(out_features))
        groups = (in_features // GROUP,) if self.is_grouped else ()
        return (*panels, *groups, PANEL)


def num_panels(out_features: int) -> int:
    """Panels that so many output features need."""
    return math.ceil(out_features / PANEL)


def _four_bits(name: FormatName, *, has_mins: bool) -> WeightFormat:
    return WeightFormat(
        name=name,
        code_dtype="int32",
        word_values=8,
        scale_dtype="float16",
        is_grouped=True,
        has_mins=has_mins,
    )


FORMATS: Mapping[FormatName, WeightFormat] = MappingProxyType(
    {
        "float32": WeightFormat(name="float32", code_dtype="float32", word_values=1),
        "bfloat16": WeightFormat(name="bfloat16", code_dtype="bfloat16", word_values=2),
        "int8": WeightFormat(name="int8", code_dtype="int8", word_values=4, scale_dtype="float32"),
        "q8_0": WeightFormat(
            name="q8_0",
            code_dtype="int8",
            word_values=4,
            scale_dtype="float16",
            is_grouped=True,
        ),
        "q4_0": _four_bits("q4_0", has_mins=False),
        "q4_1": _four_bits("q4_1", has_mins=True),
        "int4": _four_bits("int4", has_mins=True),
    }
)

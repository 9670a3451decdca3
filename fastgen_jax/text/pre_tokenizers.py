"""How byte-level vocabularies split text before merging, by the name GGUF files give the rule."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

from fastgen_jax.errors import TokenizerError

# Contractions; a run of letters with one leading mark; digits; punctuation with its line breaks;
# line breaks; spaces, leaving the last one to the word that follows. `{digits}` is the one place
# where the families differ. Source: tokenizer.json of Llama 3 and of Qwen2.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
    r"|{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplittingRule:
    """One family's way to cut text into words.

    ``pattern`` is the regular expression of a word, or None for GPT-2's own; ``single_digits`` cuts
    every digit off first; ``whole_words_first`` takes a word that is itself a token as it is,
    without merging; ``composes_unicode`` normalizes to NFC; ``adds_bos`` is the default where the
    file doesn't say.
    """

    pattern: str | None = None
    single_digits: bool = False
    whole_words_first: bool = False
    composes_unicode: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The rule as a pre-tokenizer that also spells bytes as byte-level vocabularies do."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.single_digits:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), behavior="isolated"))
        steps.append(
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None)
        )
        return pre_tokenizers.Sequence(steps)


def splitting_rule(name: str | None) -> SplittingRule:
    """The rule that ``tokenizer.ggml.pre`` names.

    Raises TokenizerError for a missing or unknown name: a wrong rule gives no error later, just
    worse text. "default" is GPT-2's rule.
    """
    rules = {
        **dict.fromkeys(("default", "gpt-2"), SplittingRule()),
        **dict.fromkeys(("smollm", "starcoder"), SplittingRule(single_digits=True)),
        **dict.fromkeys(
            ("llama-bpe", "llama3", "llama-v3"),
            SplittingRule(
                pattern=_WORDS.format(digits=r"\p{N}{1,3}"), whole_words_first=True, adds_bos=True
            ),
        ),
        "qwen2": SplittingRule(pattern=_WORDS.format(digits=r"\p{N}"), composes_unicode=True),
    }
    if name not in rules:
        raise TokenizerError(
            "is no pre-tokenizer we know"
            if name
            else "is missing, so the pre-tokenizer is unknown",
            field="tokenizer.ggml.pre",
            value=name,
            remedy=f"use one of {', '.join(rules)}, or put tokenizer.json beside the file",
        )
    return rules[name]

"""The recipe of a tokenizer: its algorithm, its special tokens, and how it normalizes and splits text."""

from dataclasses import dataclass
from typing import Literal

from data.tokens.pre_tokenizer import PreTokenizerName

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
SYSTEM = "<|system|>"
END = "<|end|>"
UNKNOWN = "<|unk|>"
MASK = "<|mask|>"

SPECIAL_TOKENS = (END_OF_TEXT, PAD, USER, ASSISTANT, SYSTEM, END)
"""Special tokens of every kind of tokenizer. Their ids are 0, 1, 2, … in this order."""

SPECIAL_TOKENS_BY_KIND = {"bpe": (), "wordpiece": (UNKNOWN, MASK), "unigram": (UNKNOWN,)}
"""Additional special tokens of each kind of tokenizer. Their ids follow those of `SPECIAL_TOKENS`."""

MIN_BPE_SIZE = 256 + len(SPECIAL_TOKENS)
"""Smallest vocabulary of a `bpe` tokenizer. Every byte has a token, so any text can be encoded and decoded exactly."""

_DEFAULT_COVERAGE = 0.9995  # the default of sentencepiece


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """All settings of a tokenizer except the size of its vocabulary."""

    kind: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    """Algorithm. `bpe` is byte-level BPE, which can encode and decode any text exactly. `wordpiece` is the tokenizer of
    BERT, which does not keep white space. `unigram` is the tokenizer of sentencepiece, on characters."""
    pre_tokenizer: PreTokenizerName = "words"
    """Rule that splits a text into words before it is encoded (`byte_level_splits`). Only for `bpe`."""
    split_digits: bool = True
    """Whether every digit is a token of its own, so that long numbers are encoded in the same way as short ones."""
    normalization: Literal["none", "NFC", "NFKC"] = "none"
    """Unicode normalization of the text before it is encoded."""
    lowercase: bool = False
    """Whether text is changed to lower case. Only for `wordpiece`."""
    byte_fallback: bool = False
    """Whether a character without a token is encoded as bytes instead of the unknown token. Only for `unigram`."""
    character_coverage: float = _DEFAULT_COVERAGE
    """Fraction of the text's characters that must have a token. The rarest characters, beyond this fraction, have none.
    Only for `wordpiece` and `unigram`."""

    def check(self) -> None:
        """Raises ValueError for a field that is out of its range, or that is set although `kind` does not use it."""
        if self.lowercase and self.kind != "wordpiece":
            raise ValueError(f"lowercase: true is only for `kind: wordpiece`, not for {self.kind}; remove it")
        if self.pre_tokenizer != "words" and self.kind != "bpe":
            raise ValueError(
                f"pre_tokenizer: {self.pre_tokenizer} is only for `kind: bpe`; {self.kind} has a rule of its own, "
                "which keeps combining marks in words too, so remove it"
            )
        if self.byte_fallback and self.kind != "unigram":
            reason = "always works on bytes" if self.kind == "bpe" else "has no byte tokens"
            raise ValueError(f"byte_fallback: true is only for `kind: unigram`; {self.kind} {reason}, so remove it")
        if self.character_coverage != _DEFAULT_COVERAGE and self.kind == "bpe":
            raise ValueError(
                "character_coverage: not for `kind: bpe`, which covers every character with byte tokens; remove it"
            )
        if not 0 < self.character_coverage <= 1:
            raise ValueError(f"character_coverage: {self.character_coverage} must be above 0 and at most 1")

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """All special tokens, in the order of their ids. The first id is 0."""
        return (*SPECIAL_TOKENS, *SPECIAL_TOKENS_BY_KIND[self.kind])

    @property
    def min_size(self) -> int:
        """Number of special tokens and byte tokens, which every vocabulary of this recipe has.

        A `wordpiece` or `unigram` vocabulary also needs tokens for the characters of the text.
        """
        return len(self.special_tokens) + (256 if self.kind == "bpe" or self.byte_fallback else 0)

"""The recipe of a tokenizer: its kind, its special tokens and how text is split."""

from dataclasses import dataclass
from typing import Literal

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
SYSTEM = "<|system|>"
END = "<|end|>"
UNKNOWN = "<|unk|>"
MASK = "<|mask|>"

SPECIAL_TOKENS = (END_OF_TEXT, PAD, USER, ASSISTANT, SYSTEM, END)
"""Special tokens of every kind, in the order of their ids, from 0."""

MORE_SPECIAL_TOKENS = {"bpe": (), "wordpiece": (UNKNOWN, MASK), "unigram": (UNKNOWN,)}
"""Special tokens of one kind; their ids follow."""

MIN_SIZE = 256 + len(SPECIAL_TOKENS)
"""Of bpe: every byte has a token, so no text is unknown and every text comes back as it was."""

_COVERAGE = 0.9995  # the default of sentencepiece


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """How text becomes tokens; all but the size."""

    kind: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    """bpe: on bytes, so that any text comes back. wordpiece: BERT's; it forgets white space. unigram: as sentencepiece
    learns it, on characters."""
    split_digits: bool = True
    """Digits stay single tokens, so that numbers of any length are spelled alike."""
    normalization: Literal["none", "NFC", "NFKC"] = "none"
    lowercase: bool = False
    """For wordpiece."""
    byte_fallback: bool = False
    """For unigram: characters without a token are spelled in bytes instead of being unknown."""
    character_coverage: float = _COVERAGE
    """For wordpiece and unigram: part of the text whose characters, the most frequent ones, have tokens."""

    def check(self) -> None:
        """Raise ValueError for a value out of its range, or one that the kind would ignore."""
        if self.lowercase and self.kind != "wordpiece":
            raise ValueError(f"lowercase: true is for kind wordpiece, not {self.kind}; leave it out")
        if self.byte_fallback and self.kind != "unigram":
            why = "works on bytes anyway" if self.kind == "bpe" else "has no byte tokens"
            raise ValueError(f"byte_fallback: true is for kind unigram; {self.kind} {why}, so leave it out")
        if self.character_coverage != _COVERAGE and self.kind == "bpe":
            raise ValueError("character_coverage: bpe covers every character by its bytes; leave it out")
        if not 0 < self.character_coverage <= 1:
            raise ValueError(f"character_coverage: {self.character_coverage} must be above 0 and at most 1")

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """In the order of their ids, from 0."""
        return (*SPECIAL_TOKENS, *MORE_SPECIAL_TOKENS[self.kind])

    @property
    def least_size(self) -> int:
        """The number of tokens before any is learned; except for bpe, the characters of the text are added to it."""
        return len(self.special_tokens) + (256 if self.kind == "bpe" or self.byte_fallback else 0)

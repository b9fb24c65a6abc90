"""Encodes text to token ids with the fastest library that gives exactly the tokenizer's ids.

A tokenizer first splits a text into pre-tokens (words, numbers, white space) and then merges bytes inside each
pre-token. tiktoken encodes byte-level BPE about three times as fast as `tokenizers`, but with a different rule.
tiktoken merges any two neighbors that together are a token. Of several such pairs, it first merges the pair whose token
has the lowest rank (tiktoken's id of the token). `tokenizers` has a list of merges, each of which is a pair of tokens.
It first merges the pair that comes first in this list. tiktoken's ranks are in the order of this list. Both rules give
the same tokens for every pre-token if this condition is true:

    Every token except the single bytes comes from exactly one merge, and encoding a token's bytes with `tokenizers`
    gives this token alone.

Proof by induction. Assume that both libraries have done the same merges so far, and that tiktoken now merges x and y to
token t. No merge so far crossed the borders of x and y. So inside them, the same merges were done in the same order as
when t is encoded alone. When t is encoded alone, there is exactly one state with two tokens, the one before the last
merge, and these two tokens are the pair of the merge that makes t. So (x, y) is this pair, and it is in the list of
merges. No pair before it in the list is present now, because tiktoken would merge that pair first. So `tokenizers` does
the same merge.

`_ids_by_token` verifies the condition for a vocabulary. `_split_pattern` builds a regular expression that splits texts
as the tokenizer's pre-tokenizer does. In addition, `fast_encoder` encodes sample texts with both libraries and uses
tiktoken only if the ids are equal.
"""

import hashlib
import json
import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import tiktoken
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from data.tokens.pre_tokenizer import byte_alphabet
from data.tokens.tokenizer import load_encoder

log = logging.getLogger(__name__)

Backend = Literal["tiktoken", "tokenizers"]
"""Name of the library that encodes."""

_NORMAL_FORMS = {
    "NFC": normalizers.NFC,
    "NFD": normalizers.NFD,
    "NFKC": normalizers.NFKC,
    "NFKD": normalizers.NFKD,
}
"""The normalizers that tiktoken can be combined with. None of them changes ASCII text."""

PROBE_TEXTS = (
    "",
    " ",
    "\n",
    "'s 'S don't we'll I'VE they're ' s''s",
    "1 22  333   4444    x 5\t6\n7\u00a08",
    "a  b   c\t\td\n\n\ne\r\nf \n g\u2003\u3000h\u0085i",
    "  leading and trailing   ",
    "\u00b2\u00bd\u2167\u0663\u0967\u4e09\u2460 x\u00b2 \u00bd  \u2167   \u0663",
    "\U00011de0\U00011de9 a\U00011de3b",
    "e\u0301 \u00e9 \u0958 \ufdfa \ufb01 \u1100\u1161\u11a8 \u212b",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \ufe0f\u200b\ufeff\u202e",
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u4e2d\u6587 \ud55c\uad6d\uc5b4 \u0627\u0644\u0644\u063a\u0629",
    "<|endoftext|> <|end|><s> </s> [CLS] [UNK] \x00\x01\x1c\x1f\x7f",
    "-=-=-=_____....,,,!?!?(){}[]\\/#$%^&*~`|",
    "a" * 300 + " " + "ab" * 150 + "\n" * 70 + "x" + " " * 70 + "1" + "\t" * 70,
)
"""Difficult texts. Two encoders that split or merge differently are likely to give different ids on one of them."""

# Limits of the comparison in `fast_encoder`. They make it short compared with the encoding of a corpus part.
_MAX_COMPARED_TEXTS = 200
_MAX_COMPARED_CHARACTERS = 1 << 18


class Encoder(Protocol):
    """Encodes texts to ids. It does not recognize special tokens in a text, and it adds none."""

    @property
    def backend(self) -> Backend:
        """Name of the library that encodes."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, as uint32 [number of tokens]."""
        ...

    def encode_without(self, text: str, excluded: Sequence[int]) -> np.ndarray:
        """Return the ids of a text, as uint32 [number of tokens], without using the tokens with the ids `excluded`.

        A part of the text that would become such a token is encoded with other tokens, or left out if it is a single
        character.
        """
        ...


@dataclass(frozen=True)
class PlainEncoder:
    """Encodes with the `tokenizers` library."""

    tokenizer: Tokenizer
    """A tokenizer that `data.tokens.tokenizer.load_encoder` returned."""
    backend: Backend = "tokenizers"

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def encode_without(self, text: str, excluded: Sequence[int]) -> np.ndarray:
        """Return the ids of a text without using the tokens with the ids `excluded`.

        The text is cut after the first character of everything that would become such a token, and the substrings are
        encoded separately. If a single character would become such a token, the character is left out. If the tokenizer
        adds a space before a text, it also adds one at each cut.
        """
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        spans = [span for span, token_id in zip(encoding.offsets, encoding.ids, strict=True) if token_id in excluded]
        cuts = sorted({start + 1 for start, end in spans if end - start > 1})
        if not cuts:
            return np.array([token_id for token_id in encoding.ids if token_id not in excluded], dtype=np.uint32)
        substrings = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
        return np.concatenate([self.encode_without(substring, excluded) for substring in substrings])


@dataclass(frozen=True)
class TiktokenEncoder:
    """Encodes with the tiktoken library and the merges of the tokenizer, in the calling thread."""

    encoding: tiktoken.Encoding
    ids: np.ndarray
    """The tokenizer's id of each tiktoken rank, uint32. tiktoken identifies a token by its rank."""
    normalizer: Any
    """Normalizes texts that are not ASCII before they are encoded. None for a tokenizer without normalization."""
    plain: PlainEncoder
    """Encodes the texts that tiktoken cannot encode."""
    backend: Backend = "tiktoken"

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        normalized = text if self.normalizer is None or text.isascii() else self.normalizer.normalize_str(text)
        try:
            ranks = self.encoding.encode_to_numpy(normalized, disallowed_special=())
        except ValueError:
            # The regular expression overflows its stack on a run of about a million spaces or unmatched characters.
            return self.plain.encode_batch([text])[0]
        return self.ids[ranks]

    def encode_without(self, text: str, excluded: Sequence[int]) -> np.ndarray:
        return self.plain.encode_without(text, excluded)


def encode_documents(encoder: Encoder, texts: Sequence[str], around: Sequence[int]) -> list[np.ndarray]:
    """Return the ids of documents, as uint32 [number of tokens] each.

    `around` are the ids of the special tokens before and after a document. If the tokenizer finds one of them in a
    text, the text is encoded with other tokens. So these tokens never occur inside a document.
    """
    encoded = encoder.encode_batch(texts)
    return [
        encoder.encode_without(text, around) if np.isin(ids, around).any() else ids
        for text, ids in zip(texts, encoded, strict=True)
    ]


def fast_encoder(folder: Path, sample: Sequence[str] = ()) -> Encoder:
    """Return the fastest encoder for the tokenizer in `folder` that gives the tokenizer's ids on the texts of `sample`.

    At most `_MAX_COMPARED_TEXTS` texts and `_MAX_COMPARED_CHARACTERS` characters of the sample are compared. The result
    depends only on the tokenizer and the sample. A process keeps the encoders of the last four tokenizers, so that they
    are not built for every call.
    """
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    plain, fast = _encoders(folder, digest)
    if fast is None or not _give_equal_ids(fast, plain, _texts_to_compare(sample)):
        return plain
    return fast


@lru_cache(maxsize=4)
def _encoders(folder: Path, digest: str) -> tuple[PlainEncoder, TiktokenEncoder | None]:
    """Return the `tokenizers` encoder and the tiktoken encoder for the tokenizer in `folder`.

    Instead of the tiktoken encoder, None is returned if its ids may differ from those of the tokenizer.

    `digest` is the checksum of the tokenizer, so that a changed file is loaded again.
    """
    plain = PlainEncoder(load_encoder(folder))
    fast = tiktoken_encoder(plain)
    if fast is None:
        log.info(
            "encoder: using `tokenizers`, because tiktoken may give different ids for the tokenizer %s", digest[:16]
        )
    elif not _give_equal_ids(fast, plain, PROBE_TEXTS):
        fast = None
    return plain, fast


def _give_equal_ids(fast: Encoder, plain: Encoder, texts: Sequence[str]) -> bool:
    """Return whether both encoders give the same ids on every text. Logs the first text with a difference."""
    pairs = zip(fast.encode_batch(texts), plain.encode_batch(texts), strict=True)
    for text, (ids, expected) in zip(texts, pairs, strict=True):
        if not np.array_equal(ids, expected):
            log.warning(
                "encoder: using `tokenizers`, because %s gives different ids on the text that begins with %r",
                fast.backend,
                text[:80],
            )
            return False
    return True


def _texts_to_compare(sample: Sequence[str]) -> list[str]:
    """Return the beginning of the sample, cut to the limits of the comparison."""
    texts: list[str] = []
    remaining_characters = _MAX_COMPARED_CHARACTERS
    for text in sample[:_MAX_COMPARED_TEXTS]:
        texts.append(text[:remaining_characters])
        remaining_characters -= len(texts[-1])
        if not remaining_characters:
            break
    return texts


def tiktoken_encoder(plain: PlainEncoder) -> TiktokenEncoder | None:
    """Return a tiktoken encoder that gives the ids of the tokenizer, or None if this cannot be proved."""
    description: dict[str, Any] = json.loads(plain.tokenizer.to_str())
    pattern = _split_pattern(description["pre_tokenizer"])
    normalizer = description["normalizer"]
    if pattern is None or not (normalizer is None or normalizer["type"] in _NORMAL_FORMS):
        return None
    if any(not token["special"] for token in description["added_tokens"]):
        return None  # The tokenizer finds these tokens in a text before it splits the text.
    ids_by_token = _ids_by_token(description["model"], plain.tokenizer)
    if ids_by_token is None:
        return None
    ranks = {token: rank for rank, token in enumerate(ids_by_token)}
    # Without special tokens, tiktoken would search every text for the empty string. So it gets one special token, which
    # never occurs in a text.
    unused_special_token = {"\U0010ffff<never>\U0010ffff": len(ranks)}
    try:
        encoding = tiktoken.Encoding(
            "raymill", pat_str=pattern, mergeable_ranks=ranks, special_tokens=unused_special_token
        )
    except ValueError as error:
        # A tokenizer that Raymill did not train may have a regular expression whose syntax Oniguruma, the library that
        # `tokenizers` uses, supports and tiktoken does not.
        log.info("encoder: tiktoken does not support the regular expression of the pre-tokenizer: %s", error)
        return None
    ids = np.fromiter(ids_by_token.values(), dtype=np.uint32)
    return TiktokenEncoder(encoding, ids, normalizer and _NORMAL_FORMS[normalizer["type"]](), plain)


# Merges.


def _ids_by_token(model: Mapping[str, Any], tokenizer: Tokenizer) -> dict[bytes, int] | None:
    """Return the id of every token that can occur in an encoded text. The keys are the bytes of the tokens.

    The order is that of tiktoken's ranks: first the 256 bytes, then the tokens in the order of their merges.

    Returns None if the condition in the module's docstring is not true.
    """
    if model["type"] != "BPE" or model["dropout"]:
        return None
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return None
    vocab: dict[str, int] = model["vocab"]
    alphabet = byte_alphabet()
    merged = ["".join(merge) for merge in model["merges"]]
    if not vocab.keys() >= alphabet.keys() or len(set(merged)) < len(merged):
        return None
    if model["ignore_merges"]:
        return None  # Such a tokenizer does not merge a pre-token that is in the vocabulary.
    bpe = tokenizer.model
    if any([piece.value for piece in bpe.tokenize(token)] != [token] for token in merged):
        return None
    return {bytes(alphabet[character] for character in token): vocab[token] for token in (*alphabet, *merged)}


# Splitting into pre-tokens.

_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++"
_GPT2 = _WORDS + r"| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++\z|\s+(?=\s)|\s"
"""Matches the pre-tokens of GPT-2 (Radford et al. 2019), with less backtracking than the published expression. If the
last character of a run of white space is a space, it belongs to the word after it."""


def _split_pattern(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """Return a regular expression whose matches are the pre-tokens of a text, without gaps between them.

    Returns None for a pre-tokenizer that is not supported.
    """
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    *before, last = steps
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or len(before) > 1:
        return None
    if not before:
        return _GPT2 if last["use_regex"] else None
    first = before[0]
    if first["type"] == "Digits" and first["individual_digits"] and last["use_regex"]:
        return _single_digits_pattern()
    if first["type"] == "Split" and not last["use_regex"]:
        return _gapless_pattern(first)
    return None


def _single_digits_pattern() -> str:
    """Return the pattern of GPT-2 with every digit as a pre-token of its own.

    White space before a digit is matched in the same way as white space at the end of the text.
    """
    digit = _digit_ranges()
    return _WORDS + rf"|[{digit}]| ?[^\s\p{{L}}{digit}]++|\s++(?=[{digit}]|\z)|\s+(?=\s)|\s"


def _gapless_pattern(step: Mapping[str, Any]) -> str | None:
    """Return a pattern for a `Split` step. It matches the matches of the step's expression and the text between them.

    Returns None if the step does not split by a regular expression or does not keep its matches as pre-tokens.
    """
    if "Regex" not in step["pattern"] or step["behavior"] != "Isolated" or step["invert"]:
        return None
    match = step["pattern"]["Regex"]
    return rf"(?:{match})|(?s:.)(?:(?!{match})(?s:.))*"


@lru_cache(maxsize=1)
def _digit_ranges() -> str:
    """Return the characters that the `Digits` pre-tokenizer treats as digits, as ranges for a character class.

    The pre-tokenizer is called for every candidate, because `\\p{N}` of the regular expression library may be from an
    older version of Unicode. Numerals have code points below 0x20000.
    """
    digits = pre_tokenizers.Digits(individual_digits=True)
    candidates = (chr(code) for code in range(0x20000) if unicodedata.category(chr(code)) in ("Nd", "Nl", "No", "Cn"))
    codes = [ord(character) for character in candidates if len(digits.pre_tokenize_str(f"a{character}")) == 2]
    return "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in _runs(codes))


def _runs(codes: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Return (first, last) of every run of consecutive numbers."""
    breaks = [position for position, (before, after) in enumerate(pairwise(codes), start=1) if after > before + 1]
    return [(codes[start], codes[end - 1]) for start, end in pairwise([0, *breaks, len(codes)])]

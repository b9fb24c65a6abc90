"""Text to token ids by the fastest route that gives the tokenizer's own ids.

tiktoken encodes byte-level BPE about three times as fast as `tokenizers`. It merges any two neighbours whose union is a
token, lowest rank first, where `tokenizers` merges the pairs of its list, first in the list first. The two are the same
function of a pre-token when

    every token but the single bytes comes from one merge, and merging the token's own bytes ends in that token.

Proof: let both have done the same so far, and tiktoken now merge x and y to the token t. No merge crossed the borders
of x and y, so the same merges were done inside them as when t is encoded alone, in the same order; and t alone passes
through one state of two tokens, the pair that its merge joins. So (x, y) is that pair.

`_ranks` proves the condition for a vocabulary, `_pattern` composes a regular expression that cuts as the pre-tokenizer
does, and `fast_encoder` compares the ids on texts before it chooses the route.
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

from data.tokens.tokenizer import load_encoder

log = logging.getLogger(__name__)

Route = Literal["tiktoken", "tokenizers"]

_NORMAL_FORMS = {
    "NFC": normalizers.NFC,
    "NFD": normalizers.NFD,
    "NFKC": normalizers.NFKC,
    "NFKD": normalizers.NFKD,
}
"""Normalizers that leave ASCII as it is."""

TRYING_TEXTS = (
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
"""Texts on which a route that cuts or merges in another way gives other ids."""

_TRIED_DOCUMENTS = 200
_TRIED_CHARACTERS = 1 << 18  # so that the comparison stays a small part of the work


class Encoder(Protocol):
    """Text to ids. A special token in a text is characters, and none is added."""

    @property
    def route(self) -> Route: ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text: uint32 [n]."""
        ...

    def encode_without(self, text: str, token: int) -> np.ndarray:
        """The ids of a text without one token, uint32 [n]; what would become it is spelled in other tokens."""
        ...


@dataclass(frozen=True)
class PlainEncoder:
    """The tokenizer itself, without tiktoken."""

    tokenizer: Tokenizer
    """From `data.tokens.tokenizer.load_encoder`."""
    route: Route = "tokenizers"

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def encode_without(self, text: str, token: int) -> np.ndarray:
        """The text is cut inside everything that becomes the token, and each substring is encoded by itself (so a
        tokenizer that puts a space before a text puts one there). A single character that becomes it is left out."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        spans = [span for span, number in zip(encoding.offsets, encoding.ids, strict=True) if number == token]
        cuts = sorted({start + 1 for start, end in spans if end - start > 1})
        if not cuts:
            return np.array([number for number in encoding.ids if number != token], dtype=np.uint32)
        substrings = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
        return np.concatenate([self.encode_without(substring, token) for substring in substrings])


@dataclass(frozen=True)
class TiktokenEncoder:
    """tiktoken over the tokenizer's merges, in the calling thread."""

    encoding: tiktoken.Encoding
    ids: np.ndarray
    """uint32, the id of each rank."""
    normalizer: Any
    """Normalizes non-ASCII text first; None for no normalization."""
    plain: PlainEncoder
    """Encodes the texts that tiktoken cannot."""
    route: Route = "tiktoken"

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        normal = text if self.normalizer is None or text.isascii() else self.normalizer.normalize_str(text)
        try:
            ranks = self.encoding.encode_to_numpy(normal, disallowed_special=())
        except ValueError:  # its regular expression fails on a run of a million blanks, or of unmatched characters
            return self.plain.encode_batch([text])[0]
        return self.ids[ranks]

    def encode_without(self, text: str, token: int) -> np.ndarray:
        return self.plain.encode_without(text, token)


def fast_encoder(folder: Path, sample: Sequence[str] = ()) -> Encoder:
    """The fastest encoder of the tokenizer in `folder` whose ids equal the tokenizer's on `sample`.

    At most `_TRIED_DOCUMENTS` texts of the sample and `_TRIED_CHARACTERS` characters are compared. The result is a
    function of the tokenizer and the sample alone; the encoders are built once in a process.
    """
    identity = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    plain, fast = _encoders(folder, identity)
    if fast is None or not _agree(fast, plain, _bounded(sample)):
        return plain
    return fast


@lru_cache(maxsize=4)
def _encoders(folder: Path, identity: str) -> tuple[PlainEncoder, TiktokenEncoder | None]:
    """The tokenizer itself, and the fast route if there is one that gives the same ids."""
    plain = PlainEncoder(load_encoder(folder))
    fast = tiktoken_encoder(plain)
    if fast is None:
        log.info("encoder: tokenizers; tiktoken is not known to give the same ids for %s", identity[:16])
    elif not _agree(fast, plain, TRYING_TEXTS):
        fast = None
    return plain, fast


def _agree(fast: Encoder, plain: Encoder, texts: Sequence[str]) -> bool:
    pairs = zip(fast.encode_batch(texts), plain.encode_batch(texts), strict=True)
    for text, (ids, expected) in zip(texts, pairs, strict=True):
        if not np.array_equal(ids, expected):
            log.warning("encoder: %s differs from the tokenizer on a text that begins %r", fast.route, text[:80])
            return False
    return True


def _bounded(sample: Sequence[str]) -> list[str]:
    texts: list[str] = []
    room = _TRIED_CHARACTERS
    for text in sample[:_TRIED_DOCUMENTS]:
        texts.append(text[:room])
        room -= len(texts[-1])
        if not room:
            break
    return texts


def tiktoken_encoder(plain: PlainEncoder) -> TiktokenEncoder | None:
    """tiktoken with the tokenizer's merges and cuts, or None if it is not certain to give the same ids."""
    whole: dict[str, Any] = json.loads(plain.tokenizer.to_str())
    pattern = _pattern(whole["pre_tokenizer"])
    normalizer = whole["normalizer"]
    if pattern is None or not (normalizer is None or normalizer["type"] in _NORMAL_FORMS):
        return None
    if any(not token["special"] for token in whole["added_tokens"]):  # these are found in text before it is cut
        return None
    tokens = _ranks(whole["model"], plain.tokenizer)
    if tokens is None:
        return None
    ranks = {token: rank for rank, token in enumerate(tokens)}
    # An encoding without special tokens would search every text for the empty one.
    never = {"\U0010ffff<never>\U0010ffff": len(ranks)}
    try:
        encoding = tiktoken.Encoding("raymill", pat_str=pattern, mergeable_ranks=ranks, special_tokens=never)
    except ValueError as error:  # a foreign tokenizer's expression, in the words of another library
        log.info("encoder: tiktoken cannot read the pre-tokenizer's regular expression: %s", error)
        return None
    ids = np.fromiter(tokens.values(), dtype=np.uint32)
    return TiktokenEncoder(encoding, ids, normalizer and _NORMAL_FORMS[normalizer["type"]](), plain)


# Merges.


def _ranks(model: Mapping[str, Any], tokenizer: Tokenizer) -> dict[bytes, int] | None:
    """Ids of all tokens that text can become, by their bytes, in the order of rank: the 256 bytes, then the merges.

    None if merging by rank is not certain to be the same function (see the module).
    """
    if model["type"] != "BPE" or model["dropout"]:
        return None
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return None
    vocab: dict[str, int] = model["vocab"]
    alphabet = _byte_alphabet()
    merged = ["".join(merge) for merge in model["merges"]]
    if not vocab.keys() >= alphabet.keys() or len(set(merged)) < len(merged):
        return None
    if model["ignore_merges"]:
        return None  # a pre-token that is an entry of the vocabulary is not merged: other rules apply
    bpe = tokenizer.model
    if any([part.value for part in bpe.tokenize(token)] != [token] for token in merged):
        return None
    return {bytes(alphabet[letter] for letter in token): vocab[token] for token in (*alphabet, *merged)}


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """The byte that each letter of byte-level BPE represents: printable bytes are their own letter, the rest are the
    letters from U+0100 on, in their order (Radford et al. 2019, the published encoder)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


# Cuts.

_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++"
_GPT2 = _WORDS + r"| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++\z|\s+(?=\s)|\s"
"""The cuts of GPT-2 (Radford et al. 2019), written so that little backtracks: a run of whitespace gives its last
character to the word after it."""


def _pattern(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """A regular expression whose matches are the pre-tokens, end to end; None for other pre-tokenizers."""
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
        return _single_digits()
    if first["type"] == "Split" and not last["use_regex"]:
        return _split(first)
    return None


def _single_digits() -> str:
    """The cuts of GPT-2 between single digits; a digit ends whitespace as the end of the text does."""
    digit = _digits()
    return _WORDS + rf"|[{digit}]| ?[^\s\p{{L}}{digit}]++|\s++(?=[{digit}]|\z)|\s+(?=\s)|\s"


def _split(step: Mapping[str, Any]) -> str | None:
    """The cuts of a Split by a regular expression: its matches, and the text between two of them."""
    if "Regex" not in step["pattern"] or step["behavior"] != "Isolated" or step["invert"]:
        return None
    match = step["pattern"]["Regex"]
    return rf"(?:{match})|(?s:.)(?:(?!{match})(?s:.))*"


@lru_cache(maxsize=1)
def _digits() -> str:
    """The digits of the Digits pre-tokenizer, as ranges of a character class.

    The library itself is asked, for `\\p{N}` of the regular expressions may be of an older Unicode. No plane above the
    second has numerals.
    """
    digits = pre_tokenizers.Digits(individual_digits=True)
    candidates = (chr(code) for code in range(0x20000) if unicodedata.category(chr(code)) in ("Nd", "Nl", "No", "Cn"))
    codes = [ord(letter) for letter in candidates if len(digits.pre_tokenize_str(f"a{letter}")) == 2]
    return "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in _runs(codes))


def _runs(codes: Sequence[int]) -> Iterable[tuple[int, int]]:
    """(first, last) of every run of consecutive numbers."""
    breaks = [position for position, (before, after) in enumerate(pairwise(codes), start=1) if after > before + 1]
    return [(codes[start], codes[end - 1]) for start, end in pairwise([0, *breaks, len(codes)])]

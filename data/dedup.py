"""Exact duplicates: documents whose texts differ at most in case, white space and Unicode form."""

import hashlib
import unicodedata
from collections.abc import Sequence


def text_key(text: str) -> bytes:
    """128 bits that two texts share when they are the same apart from case, white space and Unicode form."""
    normal = " ".join(unicodedata.normalize("NFC", text.casefold()).split())
    return hashlib.blake2b(normal.encode(), digest_size=16).digest()


def duplicates(keys: Sequence[bytes], ids: Sequence[str]) -> list[bool]:
    """True for every document but the one with the lowest id among those with an equal key.

    Documents that share the id too are ordered by position, so the caller's order has to be a function of content.
    """
    first: dict[bytes, int] = {}
    for position, key in enumerate(keys):
        if key not in first or ids[position] < ids[first[key]]:
            first[key] = position
    return [first[key] != position for position, key in enumerate(keys)]

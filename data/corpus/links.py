"""Links between documents whose signatures agree, the clusters that they make, and which document each one keeps.

Candidates whose signatures agree in a share of at least `threshold` are linked. Documents connected by links are a
cluster, and the document with its lowest id is kept.

This is the reference over one list in memory; `clusters.py` does the same over storage.
"""

from collections.abc import Sequence

import numpy as np

from data.cleaning.duplicates import NearDuplicates
from data.corpus.minhash import band_hashes, minhash_signatures, signature_digests

WINDOW = 512
"""With how many of its followers a member of a band's group is compared, besides the group's first."""

_BLOCK_PAIRS = 1 << 14


def find_links(keys: np.ndarray, members: np.ndarray, signatures: np.ndarray, rule: NearDuplicates) -> np.ndarray:
    """Pairs of signatures, int64 [M, 2] of their rows, that share a key and agree in at least `threshold` of values.

    Entry e says that signature `members[e]` (int64 [E]) has key `keys[e]` (uint64 [E]). No two of the signatures,
    uint32 [N, K], are equal. Those with one key form a group, taken in the order of their digests, so that nothing
    depends on how the documents are distributed. Each is compared with the group's first and with its next `WINDOW`,
    except pairs that the first connects already: links enough to know what is connected, in a time linear in E.
    """
    order = np.lexsort((signature_digests(signatures)[members], keys))
    members = members[order]
    starts, ends = _group_bounds(keys[order])
    position = np.arange(len(order))
    later = np.flatnonzero(position > starts)
    with_first = np.ones(len(order), bool)
    with_first[later] = _signatures_agree(signatures, members[starts[later]], members[later], rule)
    linked = later[with_first[later]]
    pairs = [np.stack([starts[linked], linked], axis=1)]
    followed = later
    for step in range(1, WINDOW + 1):
        followed = followed[followed + step < ends[followed]]
        candidates = followed[~(with_first[followed] & with_first[followed + step])]
        agreeing = candidates[_signatures_agree(signatures, members[candidates], members[candidates + step], rule)]
        pairs.append(np.stack([agreeing, agreeing + step], axis=1))
    return members[np.concatenate(pairs)]


def _group_bounds(sorted_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every position, where the run of equal keys that it is in begins and ends."""
    new = np.ones(len(sorted_keys), bool)
    new[1:] = sorted_keys[1:] != sorted_keys[:-1]
    begins = np.flatnonzero(new)
    group = np.cumsum(new) - 1
    return begins[group], np.append(begins[1:], len(sorted_keys))[group]


def _signatures_agree(signatures: np.ndarray, rows: np.ndarray, others: np.ndarray, rule: NearDuplicates) -> np.ndarray:
    """Whether each pair of rows is equal in at least `threshold` of the values."""
    agree = np.empty(len(rows), bool)
    for begin in range(0, len(rows), _BLOCK_PAIRS):
        block = slice(begin, begin + _BLOCK_PAIRS)
        equal = (signatures[rows[block]] == signatures[others[block]]).mean(axis=1)
        agree[block] = equal >= rule.threshold
    return agree


def lowest_in_component(number: int, pairs: np.ndarray) -> np.ndarray:
    """The lowest member of each node's connected component, int64 [number], for `pairs` int64 [M, 2] of nodes."""
    lowest = np.arange(number)
    while True:
        ends = lowest[pairs]
        ends = ends[ends[:, 0] != ends[:, 1]]
        if not len(ends):
            return lowest
        np.minimum.at(lowest, ends.max(axis=1), ends.min(axis=1))
        while not np.array_equal(lowest, shorter := lowest[lowest]):
            lowest = shorter


def representatives(ids: Sequence[str], texts: Sequence[str], rule: NearDuplicates) -> list[int]:
    """For each document, the position of the document that its cluster keeps; of equal ids the first one counts."""
    every = minhash_signatures(texts, rule)
    _, first, which = np.unique(signature_digests(every), return_index=True, return_inverse=True)
    distinct = every[first]
    members = np.repeat(np.arange(len(distinct)), rule.bands)
    pairs = find_links(band_hashes(distinct, rule).ravel(), members, distinct, rule)
    cluster = lowest_in_component(len(distinct), pairs)[which]
    kept: dict[int, int] = {}
    for position in sorted(range(len(ids)), key=lambda position: (ids[position], position)):
        kept.setdefault(int(cluster[position]), position)
    return [kept[int(number)] for number in cluster]

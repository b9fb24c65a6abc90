"""Links near-duplicate documents, finds clusters of linked documents, and chooses the document that a cluster keeps.

Two documents are candidates if their signatures share a band. Candidates are linked if the share of equal values in
their signatures is at least `threshold`. A cluster is a set of documents that are connected by links. Its document with
the lowest id is kept.

`representatives` does this for a list of documents in memory. `clusters.py` does the same for a corpus in storage.

In shapes, N is the number of signatures, K the number of values of a signature, E the number of entries (an entry is a
signature and one of its keys, see `find_links`), and M the number of links.
"""

from collections.abc import Sequence

import numpy as np

from data.cleaning.duplicates import NearDuplicates
from data.corpus.minhash import band_hashes, minhash_signatures, signature_digests

WINDOW = 512
"""A signature is compared with at most this many following members of its group, and with the first member.
`find_links` says what a group is."""

_BLOCK_PAIRS = 1 << 14
"""Number of pairs of signatures that are compared at once. It bounds the memory."""


def find_links(keys: np.ndarray, members: np.ndarray, signatures: np.ndarray, settings: NearDuplicates) -> np.ndarray:
    """Return links between signatures that share a key: pairs of their positions in `signatures`, int64 [M, 2].

    Entry e says that signature `members[e]` (int64 [E]) has the key `keys[e]` (uint64 [E]). A key is the hash of a
    band. All signatures (uint32 [N, K]) must be different.

    The signatures with one key are a group. A group is sorted by the digests of its signatures, so that the links do
    not depend on how the documents are distributed over tasks. Each signature is compared with the first signature of
    its group and with the next `WINDOW` signatures, so the number of comparisons is linear in E. Two signatures that
    are both linked to the first one are not compared, because they are in one cluster already. The result does not
    contain all links. For groups of at most `WINDOW` signatures, it has enough links to find the clusters. In a larger
    group, a link between signatures that are more than `WINDOW` positions apart may be missed, and then a cluster may
    be found as several clusters.
    """
    order = np.lexsort((signature_digests(signatures)[members], keys))
    # From here on, a position is the position of an entry in the sorted order.
    members = members[order]
    starts, ends = _group_bounds(keys[order])
    not_first = np.flatnonzero(np.arange(len(order)) > starts)
    agrees_with_first = np.ones(len(order), bool)
    agrees_with_first[not_first] = _signatures_agree(
        signatures, members[starts[not_first]], members[not_first], settings
    )
    linked = not_first[agrees_with_first[not_first]]
    pairs = [np.stack([starts[linked], linked], axis=1)]
    positions = not_first
    for step in range(1, WINDOW + 1):
        positions = positions[positions + step < ends[positions]]
        candidates = positions[~(agrees_with_first[positions] & agrees_with_first[positions + step])]
        agreeing = candidates[_signatures_agree(signatures, members[candidates], members[candidates + step], settings)]
        pairs.append(np.stack([agreeing, agreeing + step], axis=1))
    return members[np.concatenate(pairs)]


def _group_bounds(sorted_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each position, the first position of its group of equal keys and the position after its last one."""
    is_first = np.ones(len(sorted_keys), bool)
    is_first[1:] = sorted_keys[1:] != sorted_keys[:-1]
    begins = np.flatnonzero(is_first)
    group = np.cumsum(is_first) - 1
    return begins[group], np.append(begins[1:], len(sorted_keys))[group]


def _signatures_agree(
    signatures: np.ndarray, rows: np.ndarray, others: np.ndarray, settings: NearDuplicates
) -> np.ndarray:
    """Return, for each i, whether the share of equal values in two signatures is at least `threshold`.

    The two signatures are at the positions `rows[i]` and `others[i]` of `signatures`.
    """
    agree = np.empty(len(rows), bool)
    for begin in range(0, len(rows), _BLOCK_PAIRS):
        block = slice(begin, begin + _BLOCK_PAIRS)
        equal_share = (signatures[rows[block]] == signatures[others[block]]).mean(axis=1)
        agree[block] = equal_share >= settings.threshold
    return agree


def lowest_in_component(num_nodes: int, pairs: np.ndarray) -> np.ndarray:
    """Return the lowest node of each node's connected component, int64 [num_nodes].

    The nodes are the numbers from 0 to `num_nodes - 1`. Each row of `pairs` (int64 [M, 2]) is two linked nodes.
    """
    lowest = np.arange(num_nodes)  # for each node, the lowest node of its component that is found so far
    while True:
        unequal = lowest[pairs]
        unequal = unequal[unequal[:, 0] != unequal[:, 1]]
        if not len(unequal):
            return lowest
        np.minimum.at(lowest, unequal.max(axis=1), unequal.min(axis=1))
        while not np.array_equal(lowest, next_lowest := lowest[lowest]):
            lowest = next_lowest


def representatives(ids: Sequence[str], texts: Sequence[str], settings: NearDuplicates) -> list[int]:
    """Return, for each document, the position of the document that its cluster keeps.

    A cluster keeps the document with the lowest id. If several documents have this id, the first one is kept.
    """
    signatures = minhash_signatures(texts, settings)
    _, first_positions, distinct_index = np.unique(
        signature_digests(signatures), return_index=True, return_inverse=True
    )
    distinct = signatures[first_positions]
    members = np.repeat(np.arange(len(distinct)), settings.bands)
    pairs = find_links(band_hashes(distinct, settings).ravel(), members, distinct, settings)
    clusters = lowest_in_component(len(distinct), pairs)[distinct_index]
    kept_positions: dict[int, int] = {}
    for position in sorted(range(len(ids)), key=lambda position: (ids[position], position)):
        kept_positions.setdefault(int(clusters[position]), position)
    return [kept_positions[int(cluster)] for cluster in clusters]

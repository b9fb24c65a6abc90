"""Links and clusters, compared with datasketch and scipy, and on texts with edited copies."""

import random
from collections import defaultdict
from itertools import combinations
from typing import cast

import datasketch
import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data.cleaning.duplicates import NearDuplicates
from data.corpus.links import WINDOW, find_links, lowest_in_component, representatives
from data.corpus.minhash import band_hashes, minhash_signatures, shingle_words, signature_digests

SETTINGS = NearDuplicates()


def test_a_text_without_words_is_a_duplicate_only_of_equal_texts() -> None:
    assert representatives(["a", "b", "c", "d"], ["!!!", "???", "!!!", ""], SETTINGS) == [0, 1, 0, 3]


def test_candidates_and_similarities_equal_those_of_datasketch() -> None:
    texts = texts_with_copies(random.Random(3), 300)[0]
    signatures = minhash_signatures(texts, SETTINGS)
    sketches = [
        datasketch.MinHash(num_perm=120, scheme="legacy", hashvalues=row.astype(np.uint64)) for row in signatures
    ]
    index = datasketch.MinHashLSH(num_perm=120, params=(SETTINGS.bands, SETTINGS.rows))
    for position, sketch in enumerate(sketches):
        index.insert(position, sketch)
    expected = {
        (min(one, other), max(one, other))
        for one, sketch in enumerate(sketches)
        for other in cast(list[int], index.query(sketch))
        if other != one
    }
    hashes = band_hashes(signatures, SETTINGS)
    assert len(np.unique(hashes)) == sum(len(np.unique(hashes[:, band])) for band in range(SETTINGS.bands))
    shared: dict[int, list[int]] = defaultdict(list)
    for position, row in enumerate(hashes.tolist()):
        for value in row:
            shared[value].append(position)
    candidates = {pair for group in shared.values() for pair in combinations(group, 2)}
    assert candidates == expected and len(candidates) > 100
    agreeing = {(one, other) for one, other in expected if sketches[one].jaccard(sketches[other]) >= SETTINGS.threshold}
    assert 50 < len(agreeing) < len(expected)
    assert lowest_by_union_find(len(texts), agreeing) == representatives(numbered_ids(len(texts)), texts, SETTINGS)


def test_a_pair_with_a_similarity_of_exactly_the_threshold_is_linked() -> None:
    signatures = np.zeros((2, 120), np.uint32)
    signatures[1, 84:] = 1
    same_key, members = np.zeros(2, np.uint64), np.arange(2)
    assert len(find_links(same_key, members, signatures, SETTINGS)) == 1
    signatures[1, 83] = 1
    assert len(find_links(same_key, members, signatures, SETTINGS)) == 0


def test_components_equal_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for number, edges in [(1, 0), (10, 5), (1000, 700), (1000, 3000)]:
        pairs = rng.integers(0, number, (edges, 2))
        graph = coo_array((np.ones(edges), (pairs[:, 0], pairs[:, 1])), shape=(number, number))
        expected = connected_components(graph, directed=False)[1]
        lowest = {label: np.flatnonzero(expected == label)[0] for label in set(expected.tolist())}
        assert lowest_in_component(number, pairs).tolist() == [lowest[label] for label in expected.tolist()]


def test_a_long_chain_is_one_component() -> None:
    order = np.random.default_rng(1).permutation(20_000)
    assert not lowest_in_component(20_000, np.stack([order[:-1], order[1:]], axis=1)).any()


def test_a_chain_of_similar_documents_keeps_the_lowest_id() -> None:
    """The first and the last document share nothing, but are in one cluster, because each is similar to the next."""
    rng = random.Random(4)
    text = random_text(rng, 200).split()
    chain = [" ".join(text[step * 10 : step * 10 + 100]) for step in range(11)]
    assert jaccard(chain[0], chain[-1]) == 0 and jaccard(chain[0], chain[1]) > 0.8
    ids = ["f", "e", "b", "d", "k", "c", "a", "j", "g", "h", "i"]
    assert representatives(ids, chain, SETTINGS) == [6] * 11


def test_of_documents_with_equal_ids_the_first_is_kept() -> None:
    assert representatives(["b", "a", "a", "z"], ["same text"] * 3 + ["other"], SETTINGS) == [1, 1, 1, 3]


@pytest.mark.parametrize("first_is_alike", [True, False])
def test_a_group_larger_than_the_window_is_connected_without_comparing_all_pairs(first_is_alike: bool) -> None:
    """There are 3,000 documents with one key. Every second document agrees with the others of its kind in 100 of 120
    values. The remaining documents agree with no document."""
    signatures = np.random.default_rng(2).integers(0, 2**32, (3000, 120), dtype=np.uint32)
    alike = np.arange(3000) % 2 == 0
    signatures[alike, :100] = signatures[0, :100]
    digest = signature_digests(signatures)
    members = np.flatnonzero(digest >= digest[alike == first_is_alike].min())
    pairs = find_links(np.zeros(len(members), np.uint64), members, signatures, SETTINGS)
    assert len(pairs) == alike[members].sum() - 1 if first_is_alike else len(pairs) < WINDOW * 1500
    cluster = lowest_in_component(3000, pairs)
    assert len(set(cluster[members[alike[members]]])) == 1
    assert (cluster[~alike] == np.flatnonzero(~alike)).all()


def test_edited_copies_are_found_and_other_documents_are_not_removed() -> None:
    rng = random.Random(5)
    texts, plants = texts_with_copies(rng, 1500)
    kept = representatives(numbered_ids(len(texts)), texts, SETTINGS)
    wanted = [(one, other) for one, other in plants if jaccard(texts[one], texts[other]) >= 0.8]
    found = sum(kept[one] == kept[other] for one, other in wanted)
    assert len(wanted) > 200 and found >= 0.97 * len(wanted)
    neighbors = neighbors_at(texts, 0.5)
    lonely = [position for position in range(len(texts)) if position not in neighbors]
    removed = sum(kept[position] != position for position in lonely)
    assert len(lonely) > 700 and removed < 0.001 * len(lonely)


def test_documents_that_share_a_third_to_a_half_are_not_linked() -> None:
    rng = random.Random(6)
    pairs = [pair_of_texts(rng, rng.randint(60, 400), rng.uniform(0.35, 0.5)) for _ in range(400)]
    pairs = [pair for pair in pairs if 0.3 < jaccard(*pair) < 0.5]
    texts = [text for pair in pairs for text in pair]
    assert len(pairs) > 300
    assert representatives(numbered_ids(len(texts)), texts, SETTINGS) == list(range(len(texts)))


VOCABULARY = ["".join(random.Random(seed).choices("abcdefghijklmnop", k=3 + seed % 6)) for seed in range(4000)]


def random_text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=num_words))


def shingle_set(text: str) -> set[tuple[str, ...]]:
    words = shingle_words(text)
    return {tuple(words[at : at + 5]) for at in range(max(len(words) - 4, 1))}


def jaccard(one: str, other: str) -> float:
    first, second = shingle_set(one), shingle_set(other)
    return len(first & second) / len(first | second)


def pair_of_texts(rng: random.Random, num_words: int, similarity: float) -> tuple[str, str]:
    """Return two texts with a common beginning and about this Jaccard similarity."""
    common = int(num_words * 2 * similarity / (1 + similarity))
    begin = rng.choices(VOCABULARY, k=common)
    one, other = (" ".join(begin + rng.choices(VOCABULARY, k=num_words - common)) for _ in range(2))
    return one, other


def numbered_ids(number: int) -> list[str]:
    return [f"{position:06d}" for position in range(number)]


def edited(rng: random.Random, text: str, num_edits: int) -> str:
    words = text.split()
    for _ in range(num_edits):
        words[rng.randrange(len(words))] = rng.choice(VOCABULARY)
    return " ".join(words)


def texts_with_copies(rng: random.Random, number: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Return random texts, every second one followed by an edited copy, and the positions of these pairs."""
    texts: list[str] = []
    plants: list[tuple[int, int]] = []
    for number_ in range(number):
        text = random_text(rng, rng.randint(30, 400))
        texts.append(text)
        if number_ % 2 == 0:
            texts.append(edited(rng, text, int(len(text.split()) * rng.uniform(0, 0.06))))
            plants.append((len(texts) - 2, len(texts) - 1))
    return texts, plants


def neighbors_at(texts: list[str], least: float) -> set[int]:
    """Return the positions of texts that have an exact similarity of at least `least` with another text."""
    sets = [shingle_set(text) for text in texts]
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, shingles in enumerate(sets):
        for shingle in shingles:
            places[shingle].append(position)
    shared = {pair for group in places.values() for pair in combinations(group, 2)}
    near = [pair for pair in shared if len(sets[pair[0]] & sets[pair[1]]) >= least * len(sets[pair[0]] | sets[pair[1]])]
    return {position for pair in near for position in pair}


def lowest_by_union_find(number: int, pairs: set[tuple[int, int]]) -> list[int]:
    """Return the lowest position of each component, found by union-find."""
    parent = list(range(number))

    def root(position: int) -> int:
        while parent[position] != position:
            position = parent[position]
        return position

    for one, other in sorted(pairs):
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [root(position) for position in range(number)]

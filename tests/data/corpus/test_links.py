"""Links, clusters and what they keep: against datasketch and scipy, with planted near-duplicates."""

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
from data.corpus.minhash import band_hashes, minhash_signatures, signature_digests, split_words

SETTINGS = NearDuplicates()


def test_texts_without_words_are_duplicates_only_of_themselves() -> None:
    assert representatives(["a", "b", "c", "d"], ["!!!", "???", "!!!", ""], SETTINGS) == [0, 1, 0, 3]


def test_datasketch_finds_the_same_candidates_and_the_same_similarity() -> None:
    texts = planted(random.Random(3), 300)[0]
    made = minhash_signatures(texts, SETTINGS)
    sketches = [datasketch.MinHash(num_perm=120, scheme="legacy", hashvalues=row.astype(np.uint64)) for row in made]
    index = datasketch.MinHashLSH(num_perm=120, params=(SETTINGS.bands, SETTINGS.rows))
    for position, sketch in enumerate(sketches):
        index.insert(position, sketch)
    theirs = {
        (min(one, other), max(one, other))
        for one, sketch in enumerate(sketches)
        for other in cast(list[int], index.query(sketch))
        if other != one
    }
    hashes = band_hashes(made, SETTINGS)
    assert len(np.unique(hashes)) == sum(len(np.unique(hashes[:, band])) for band in range(SETTINGS.bands))
    shared: dict[int, list[int]] = defaultdict(list)
    for position, row in enumerate(hashes.tolist()):
        for value in row:
            shared[value].append(position)
    ours = {pair for group in shared.values() for pair in combinations(group, 2)}
    assert ours == theirs and len(ours) > 100
    agreeing = {(one, other) for one, other in theirs if sketches[one].jaccard(sketches[other]) >= SETTINGS.threshold}
    assert 50 < len(agreeing) < len(theirs)
    assert kept_by_pairs(len(texts), agreeing) == representatives(by_number(len(texts)), texts, SETTINGS)


def test_a_pair_right_at_the_threshold_is_linked() -> None:
    made = np.zeros((2, 120), np.uint32)
    made[1, 84:] = 1
    same_key, members = np.zeros(2, np.uint64), np.arange(2)
    assert len(find_links(same_key, members, made, SETTINGS)) == 1
    made[1, 83] = 1
    assert len(find_links(same_key, members, made, SETTINGS)) == 0


def test_components_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for number, edges in [(1, 0), (10, 5), (1000, 700), (1000, 3000)]:
        pairs = rng.integers(0, number, (edges, 2))
        graph = coo_array((np.ones(edges), (pairs[:, 0], pairs[:, 1])), shape=(number, number))
        theirs = connected_components(graph, directed=False)[1]
        lowest = {label: np.flatnonzero(theirs == label)[0] for label in set(theirs.tolist())}
        assert lowest_in_component(number, pairs).tolist() == [lowest[label] for label in theirs.tolist()]


def test_a_long_chain_is_one_component() -> None:
    order = np.random.default_rng(1).permutation(20_000)
    assert not lowest_in_component(20_000, np.stack([order[:-1], order[1:]], axis=1)).any()


def test_a_chain_of_documents_ends_with_the_lowest_id() -> None:
    """Ends that share nothing go together when every step between them is small."""
    rng = random.Random(4)
    text = random_text(rng, 200).split()
    chain = [" ".join(text[step * 10 : step * 10 + 100]) for step in range(11)]
    assert jaccard(chain[0], chain[-1]) == 0 and jaccard(chain[0], chain[1]) > 0.8
    ids = ["f", "e", "b", "d", "k", "c", "a", "j", "g", "h", "i"]
    assert representatives(ids, chain, SETTINGS) == [6] * 11


def test_of_equal_ids_the_first_document_is_kept() -> None:
    assert representatives(["b", "a", "a", "z"], ["same text"] * 3 + ["other"], SETTINGS) == [1, 1, 1, 3]


@pytest.mark.parametrize("first_is_alike", [True, False])
def test_a_group_far_beyond_the_window_is_connected_without_comparing_all(first_is_alike: bool) -> None:
    """3,000 documents under one key: every other one agrees with its like in 100 of 120 values, the rest with none."""
    made = np.random.default_rng(2).integers(0, 2**32, (3000, 120), dtype=np.uint32)
    alike = np.arange(3000) % 2 == 0
    made[alike, :100] = made[0, :100]
    digest = signature_digests(made)
    members = np.flatnonzero(digest >= digest[alike == first_is_alike].min())
    pairs = find_links(np.zeros(len(members), np.uint64), members, made, SETTINGS)
    assert len(pairs) == alike[members].sum() - 1 if first_is_alike else len(pairs) < WINDOW * 1500
    cluster = lowest_in_component(3000, pairs)
    assert len(set(cluster[members[alike[members]]])) == 1
    assert (cluster[~alike] == np.flatnonzero(~alike)).all()


def test_planted_near_duplicates_are_found_and_others_are_not_removed() -> None:
    rng = random.Random(5)
    texts, plants = planted(rng, 1500)
    kept = representatives(by_number(len(texts)), texts, SETTINGS)
    wanted = [(one, other) for one, other in plants if jaccard(texts[one], texts[other]) >= 0.8]
    found = sum(kept[one] == kept[other] for one, other in wanted)
    assert len(wanted) > 200 and found >= 0.97 * len(wanted)
    neighbours = neighbours_at(texts, 0.5)
    lonely = [position for position in range(len(texts)) if position not in neighbours]
    removed = sum(kept[position] != position for position in lonely)
    assert len(lonely) > 700 and removed < 0.001 * len(lonely)


def test_documents_that_share_a_third_to_a_half_stay_apart() -> None:
    rng = random.Random(6)
    pairs = [pair_of_texts(rng, rng.randint(60, 400), rng.uniform(0.35, 0.5)) for _ in range(400)]
    pairs = [pair for pair in pairs if 0.3 < jaccard(*pair) < 0.5]
    texts = [text for pair in pairs for text in pair]
    assert len(pairs) > 300
    assert representatives(by_number(len(texts)), texts, SETTINGS) == list(range(len(texts)))


VOCABULARY = ["".join(random.Random(seed).choices("abcdefghijklmnop", k=3 + seed % 6)) for seed in range(4000)]


def random_text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choices(VOCABULARY, k=num_words))


def shingle_set(text: str) -> set[tuple[str, ...]]:
    own = split_words(text)
    return {tuple(own[at : at + 5]) for at in range(max(len(own) - 4, 1))}


def jaccard(one: str, other: str) -> float:
    first, second = shingle_set(one), shingle_set(other)
    return len(first & second) / len(first | second)


def pair_of_texts(rng: random.Random, num_words: int, similarity: float) -> tuple[str, str]:
    """Two texts with a common beginning, about so similar."""
    common = int(num_words * 2 * similarity / (1 + similarity))
    begin = rng.choices(VOCABULARY, k=common)
    one, other = (" ".join(begin + rng.choices(VOCABULARY, k=num_words - common)) for _ in range(2))
    return one, other


def by_number(number: int) -> list[str]:
    return [f"{position:06d}" for position in range(number)]


def edited(rng: random.Random, text: str, num_edits: int) -> str:
    own = text.split()
    for _ in range(num_edits):
        own[rng.randrange(len(own))] = rng.choice(VOCABULARY)
    return " ".join(own)


def planted(rng: random.Random, number: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Texts of 30 to 400 words, every other one followed by an edited copy; the pairs of positions."""
    texts: list[str] = []
    plants: list[tuple[int, int]] = []
    for number_ in range(number):
        text = random_text(rng, rng.randint(30, 400))
        texts.append(text)
        if number_ % 2 == 0:
            texts.append(edited(rng, text, int(len(text.split()) * rng.uniform(0, 0.06))))
            plants.append((len(texts) - 2, len(texts) - 1))
    return texts, plants


def neighbours_at(texts: list[str], least: float) -> set[int]:
    """Positions of texts with another at this exact similarity or more, by an index of all shingles."""
    sets = [shingle_set(text) for text in texts]
    places: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for position, own in enumerate(sets):
        for shingle in own:
            places[shingle].append(position)
    shared = {pair for group in places.values() for pair in combinations(group, 2)}
    near = [pair for pair in shared if len(sets[pair[0]] & sets[pair[1]]) >= least * len(sets[pair[0]] | sets[pair[1]])]
    return {position for pair in near for position in pair}


def kept_by_pairs(number: int, pairs: set[tuple[int, int]]) -> list[int]:
    """Union-find with the lowest position as the root."""
    parent = list(range(number))

    def root(position: int) -> int:
        while parent[position] != position:
            position = parent[position]
        return position

    for one, other in sorted(pairs):
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [root(position) for position in range(number)]

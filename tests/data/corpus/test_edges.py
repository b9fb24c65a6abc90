"""Large and small stars, compared with results computed by hand and by scipy."""

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data.corpus.edges import large_star, small_star


def test_a_path_becomes_a_star_in_the_rounds_computed_by_hand() -> None:
    """The path is 3 - 1 - 4 - 2 - 5.

    Large stars: 1 links its greater neighbors 3 and 4 to itself, and 2 links 4 and 5 to itself. 3, 4 and 5 have no
    greater neighbor. So the edges stay 3-1, 4-1, 4-2, 5-2. Small stars: 4 has the lower neighbors 1 and 2. It links 2
    and itself to 1. So the edges become 3-1, 4-1, 2-1, 5-2. Large stars: 2 links 5 to 1. Now all nodes are leaves of 1.
    """
    edges = [(3, 1), (4, 1), (4, 2), (5, 2)]
    result, in_stars = large(edges)
    assert (result, in_stars) == (edges, False)
    edges = small(result)
    assert edges == [(2, 1), (3, 1), (4, 1), (5, 2)]
    result, in_stars = large(edges)
    assert (result, in_stars) == ([(2, 1), (3, 1), (4, 1), (5, 1)], False)
    assert small(result) == result and large(result) == (result, True)


def test_a_large_star_links_greater_neighbors_to_the_lowest_neighbor() -> None:
    """With the edges 2-7, 7-8 and 7-9, node 7 links 8 and 9 to 2, and 7 stays linked to 2."""
    assert large([(7, 2), (8, 7), (9, 7)]) == ([(7, 2), (8, 2), (9, 2)], False)


@pytest.mark.parametrize("seed", range(5))
def test_rounds_on_random_graphs_find_the_components_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, 400, (300, 2))
    edges = sorted({(int(max(pair)), int(min(pair))) for pair in pairs if pair[0] != pair[1]})
    for _ in range(20):
        result, in_stars = large(edges)
        if in_stars:
            break
        edges = small(result)
    assert in_stars
    assert dict(edges) == {node: low for node, low in enumerate(lowest_by_scipy(400, pairs)) if low != node}


def large(edges: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], bool]:
    both = np.array(edges + [(lower, node) for node, lower in edges], np.uint64)
    star = large_star(both[:, 0], both[:, 1])
    return star.edges.tolist(), star.in_stars


def small(edges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    edge_array = np.array(edges, np.uint64)
    return small_star(edge_array[:, 0], edge_array[:, 1]).tolist()


def lowest_by_scipy(number: int, pairs: np.ndarray) -> list[int]:
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(number, number))
    labels = connected_components(graph, directed=False)[1]
    return [int(np.flatnonzero(labels == label)[0]) for label in labels]

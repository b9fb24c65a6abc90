"""Stars of edges, worked by hand and against scipy."""

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data.corpus.edges import large_star, small_star


def test_a_path_becomes_a_star_in_hand_worked_rounds() -> None:
    """The path 3 - 1 - 4 - 2 - 5.

    Large star: 1 gives its greater neighbours 3 and 4 to itself; 2 gives 4 and 5 to itself; 3, 4, 5 have no greater
    neighbour. Nothing changes: 3-1, 4-1, 4-2, 5-2. Small star: 4 has the lower ones 1 and 2, and gives 2 and itself
    to 1. So 3-1, 4-1, 2-1, 5-2. Large star: 2 gives 5 to 1. Then all are leaves of 1.
    """
    edges = [(3, 1), (4, 1), (4, 2), (5, 2)]
    made, stars = large(edges)
    assert (made, stars) == (edges, False)
    edges = small(made)
    assert edges == [(2, 1), (3, 1), (4, 1), (5, 2)]
    made, stars = large(edges)
    assert (made, stars) == ([(2, 1), (3, 1), (4, 1), (5, 1)], False)
    assert small(made) == made and large(made) == (made, True)


def test_the_large_star_of_a_middle_node_goes_to_its_lowest_neighbour() -> None:
    """2 - 7, 7 - 8, 7 - 9: 7 gives 8 and 9 to 2, and 2 keeps 7."""
    assert large([(7, 2), (8, 7), (9, 7)]) == ([(7, 2), (8, 2), (9, 2)], False)


@pytest.mark.parametrize("seed", range(5))
def test_rounds_on_random_graphs_end_with_the_components_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, 400, (300, 2))
    edges = sorted({(int(max(pair)), int(min(pair))) for pair in pairs if pair[0] != pair[1]})
    for _ in range(20):
        made, stars = large(edges)
        if stars:
            break
        edges = small(made)
    assert stars
    assert dict(edges) == {node: low for node, low in enumerate(lowest_by_scipy(400, pairs)) if low != node}


def large(edges: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], bool]:
    both = np.array(edges + [(lower, node) for node, lower in edges], np.uint64)
    star = large_star(both[:, 0], both[:, 1])
    return star.edges.tolist(), star.in_stars


def small(edges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    own = np.array(edges, np.uint64)
    return small_star(own[:, 0], own[:, 1]).tolist()


def lowest_by_scipy(number: int, pairs: np.ndarray) -> list[int]:
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(number, number))
    labels = connected_components(graph, directed=False)[1]
    return [int(np.flatnonzero(labels == label)[0]) for label in labels]

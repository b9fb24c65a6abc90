"""Edges between near-duplicate documents, and the two operations that make a star of each connected component.

The two-phase algorithm of Kiveris et al. 2014 (Connected Components in MapReduce and Beyond): a large star links each
node's greater neighbors to its lowest one (the node counted), a small star its lower neighbors and the node itself.
"""

from typing import NamedTuple

import numpy as np

from data.corpus.links import lowest_in_component

EDGE = np.dtype([("node", "<u8"), ("lower", "<u8")])


def make_edges(node: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """An edge from each node to the one of lower number beside it, uint64 [E] each."""
    edges = np.empty(len(node), EDGE)
    edges["node"], edges["lower"] = node, lower
    return edges


def sort_unique(edges: np.ndarray) -> np.ndarray:
    """The edges in order, each once."""
    edges = edges[np.lexsort((edges["lower"], edges["node"]))]  # a third of the time that np.unique takes
    return edges[run_starts(edges["node"], edges["lower"]) == np.arange(len(edges))]


def run_starts(*columns: np.ndarray) -> np.ndarray:
    """For every position of sorted columns, the first position of the run of equal rows that it is in."""
    position = np.arange(len(columns[0]))
    same = np.zeros(len(position), bool)
    same[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    return np.maximum.accumulate(np.where(same, 0, position))


def forest_edges(nodes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """An edge from each node (sorted uint64; `pairs` are positions among them) to its component's lowest."""
    lowest = nodes[lowest_in_component(len(nodes), pairs)]
    return make_edges(nodes[lowest < nodes], lowest[lowest < nodes])


class LargeStar(NamedTuple):
    nodes: np.ndarray
    lowest: np.ndarray
    """Each node's lowest neighbor, or itself."""
    edges: np.ndarray
    in_stars: bool
    """Whether every node was in a star before: linked to greater nodes only (the center) or to a single lower one
    (a leaf)."""


def large_star(node: np.ndarray, neighbor: np.ndarray) -> LargeStar:
    """The large star of every node. Takes every neighbor of every node, uint64 [E] each, no pair twice."""
    nodes, which = np.unique(node, return_inverse=True)
    lowest = nodes.copy()
    np.minimum.at(lowest, which, neighbor)
    greater = neighbor > node
    edges = sort_unique(make_edges(neighbor[greater], lowest[which[greater]]))
    num_lower = np.bincount(which[~greater], minlength=len(nodes))
    degree = np.bincount(which, minlength=len(nodes))
    return LargeStar(nodes, lowest, edges, bool(np.all((num_lower == 0) | (degree == 1))))


def small_star(node: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """The edges that the small stars of all nodes make, given every node's lower neighbors, uint64 [E] each."""
    nodes, which = np.unique(node, return_inverse=True)
    lowest = nodes.copy()
    np.minimum.at(lowest, which, lower)
    edges = make_edges(np.concatenate([lower, nodes]), np.concatenate([lowest[which], lowest]))
    return sort_unique(edges[edges["node"] > edges["lower"]])

"""Loads the RL algorithm of a run: a built-in one, or one that a user's file defines."""

from __future__ import annotations

from cluster.user_program import Program, load_object
from model.algorithms import ALGORITHMS, Algorithm


def load_algorithm(algorithm: str | Program) -> Algorithm:
    """Return the built-in algorithm with this name, or the algorithm that a user-provided program defines.

    Raises ValueError for an unknown name, and for a program whose object is not an `Algorithm`.
    """
    if isinstance(algorithm, str):
        if algorithm not in ALGORITHMS:
            raise ValueError(
                f"learning.algorithm: {algorithm!r} is not one of {', '.join(ALGORITHMS)}; "
                "name an algorithm of your own as path/to/file.py:NAME"
            )
        return ALGORITHMS[algorithm]
    loaded = load_object(algorithm)
    if not isinstance(loaded, Algorithm):
        raise ValueError(
            f"learning.algorithm: {algorithm.name} is a {type(loaded).__name__}; "
            "it must be a model.algorithms.Algorithm"
        )
    return loaded

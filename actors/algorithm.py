"""The RL algorithm of a run: a row of the table, or one that a file of the user's defines."""

from __future__ import annotations

from cluster.user_program import Program, load_object
from model.algorithms import ALGORITHMS, Algorithm


def load_algorithm(algorithm: str | Program) -> Algorithm:
    """The algorithm of this name in the table, or the one that a program defines.

    Raises ValueError for an unknown name, and for a program that defines no `Algorithm` of its name.
    """
    if isinstance(algorithm, str):
        if algorithm not in ALGORITHMS:
            raise ValueError(
                f"algorithm: {algorithm!r} is not one of {', '.join(ALGORITHMS)}; "
                "your own algorithm is path/to/file.py:NAME"
            )
        return ALGORITHMS[algorithm]
    row = load_object(algorithm)
    if not isinstance(row, Algorithm):
        raise ValueError(
            f"algorithm: {algorithm.name} is a {type(row).__name__}; it must be a model.algorithms.Algorithm"
        )
    return row

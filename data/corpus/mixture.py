"""The mixture of a corpus: how much of each source is kept, so that the bytes are in the proportion of the weights."""

from collections.abc import Mapping

import pyarrow as pa

from data.corpus.rows import Drop, drop_rows, kept_positions
from data.document import unit_hash


def mixture_shares(num_bytes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
    """The share of each source's documents to keep, so that bytes are as the weights say and as many as possible.

    With B bytes of a source and weight w (of weights that sum to 1) the whole is T = min(B / w), the share w T / B.
    A source with no bytes left, or weight 0, has share 0 and limits no other.
    """
    total = sum(weights.values())
    whole = min(
        (num_bytes[name] * total / weight for name, weight in weights.items() if weight and num_bytes.get(name)),
        default=0.0,
    )
    return {
        name: min(1.0, weight / total * whole / num_bytes[name]) if num_bytes.get(name) else 0.0
        for name, weight in weights.items()
    }


def apply_mixture(rows: pa.Table, shares: Mapping[str, float]) -> pa.Table:
    """The rows after each source is reduced to its share, by a hash of the ids; all of them without shares."""
    if not shares:
        return rows
    ids, sources = rows["id"], rows["source"]
    surplus = {
        int(position): Drop("mixture")
        for position in kept_positions(rows)
        if unit_hash(ids[position].as_py(), "mixture") >= shares[sources[position].as_py()]
    }
    return drop_rows(rows, surplus)

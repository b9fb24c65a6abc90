"""Applies a mixture: drops documents so that the kept bytes of the sources are in the proportion of given weights."""

from collections.abc import Mapping

import pyarrow as pa

from data.corpus.rows import Drop, drop_rows, kept_positions
from data.document import unit_hash


def mixture_shares(num_bytes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each source's documents to keep. Nothing is repeated, and as much is kept as possible.

    `num_bytes`, `weights` and the result have the source's name as the key. Let B be the bytes of a source and w its
    weight, with weights that sum to 1. Then the mixture has T bytes, where T is the minimum of B / w over all sources,
    and the share of a source is w T / B. A source without bytes or with the weight 0 has the share 0, and it does not
    limit the other sources.
    """
    sum_of_weights = sum(weights.values())
    mixture_bytes = min(
        (
            num_bytes[name] * sum_of_weights / weight
            for name, weight in weights.items()
            if weight and num_bytes.get(name)
        ),
        default=0.0,
    )
    return {
        name: min(1.0, weight / sum_of_weights * mixture_bytes / num_bytes[name]) if num_bytes.get(name) else 0.0
        for name, weight in weights.items()
    }


def apply_mixture(rows: pa.Table, shares: Mapping[str, float]) -> pa.Table:
    """Return the rows after each source is reduced to its share. A hash of the id decides which documents are dropped.

    If `shares` is empty, there is no mixture, and no document is dropped.
    """
    if not shares:
        return rows
    ids, sources = rows["id"], rows["source"]
    surplus = {
        int(position): Drop("mixture")
        for position in kept_positions(rows)
        if unit_hash(ids[position].as_py(), "mixture") >= shares[sources[position].as_py()]
    }
    return drop_rows(rows, surplus)

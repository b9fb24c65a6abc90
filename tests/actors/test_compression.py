"""A compressed folder that the engine misreads is rejected, and the change in bits per byte is paired by document."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.compression import bits_per_byte, check_engine


@pytest.mark.parametrize(
    ("compression_change", "engine_difference", "is_accepted"),
    [
        (0.01, 0.01, True),
        (0.01, 0.04, True),  # below SMALL_DIFFERENCE
        (0.02, 0.2, True),  # sums of pairs that saturate in 16 bits, with random weights
        (0.2, 0.25, True),  # a large model, which compression changes a lot
        (0.002, 0.13, False),  # the engine reads scales twice as large, and the model is hardly trained
        (0.02, 0.4, False),
        (0.2, 1.5, False),  # the engine reads the rows in another order
        (0.01, math.nan, False),
    ],
)
def test_a_compressed_folder_that_the_engine_misreads_is_rejected(
    compression_change: float, engine_difference: float, is_accepted: bool
) -> None:
    generator = np.random.default_rng(0)
    compressed = [generator.normal(-5.0, 1.2, size) for size in (300, 200)]
    signs = [generator.choice([-1.0, 1.0], len(values)) for values in compressed]
    original = [values + compression_change for values in compressed]
    engine = [values + engine_difference * sign for values, sign in zip(compressed, signs, strict=True)]
    if is_accepted:
        assert check_engine(engine, compressed, original) == pytest.approx(engine_difference)
    else:
        with pytest.raises(RuntimeError, match="vLLM misreads the compressed folder"):
            check_engine(engine, compressed, original)


def test_the_change_in_bits_per_byte_is_paired_by_document() -> None:
    num_bytes = np.full(4, 100)
    nats = np.array([100.0, 900.0, 50.0, 300.0])
    original = bits_per_byte(nats, num_bytes)
    change = bits_per_byte(1.01 * nats - nats, num_bytes)
    assert change.value == pytest.approx(0.01 * original.value)
    assert change.low > 0  # although the documents differ from each other far more than the two models do

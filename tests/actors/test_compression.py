"""An engine that misreads a compressed folder is refused, and the change of bits per byte is paired by document."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.compression import bits_per_byte, check_engine


@pytest.mark.parametrize(
    ("rounding", "engine_differs", "is_sound"),
    [
        (0.01, 0.01, True),
        (0.01, 0.04, True),  # so little needs no explanation
        (0.02, 0.2, True),  # pairs that saturate in 16 bits, on random weights
        (0.2, 0.25, True),  # a large model, whose rounding changes much
        (0.002, 0.13, False),  # scales that are read as twice what they are, in a model that has learned little
        (0.02, 0.4, False),
        (0.2, 1.5, False),  # rows in another order
        (0.01, math.nan, False),
    ],
)
def test_a_compression_that_an_engine_misreads_is_refused(
    rounding: float, engine_differs: float, is_sound: bool
) -> None:
    generator = np.random.default_rng(0)
    ours = [generator.normal(-5.0, 1.2, size) for size in (300, 200)]
    signs = [generator.choice([-1.0, 1.0], len(values)) for values in ours]
    original = [values + rounding for values in ours]
    engine = [values + engine_differs * sign for values, sign in zip(ours, signs, strict=True)]
    if is_sound:
        assert check_engine(engine, ours, original) == pytest.approx(engine_differs)
    else:
        with pytest.raises(RuntimeError, match="vLLM misreads the compressed folder"):
            check_engine(engine, ours, original)


def test_the_change_of_a_compression_is_paired_by_document() -> None:
    num_bytes = np.full(4, 100)
    nats = np.array([100.0, 900.0, 50.0, 300.0])
    original = bits_per_byte(nats, num_bytes)
    change = bits_per_byte(1.01 * nats - nats, num_bytes)
    assert change.value == pytest.approx(0.01 * original.value)
    assert change.low > 0  # though the documents differ far more than the models do

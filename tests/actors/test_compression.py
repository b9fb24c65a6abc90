"""A compressed folder that the engine misreads is rejected, and the change in bits per byte is paired by document."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.compression import bits_per_byte, check_engine


@pytest.mark.parametrize(
    ("rounding", "engine_difference", "is_accepted"),
    [
        (0.35, 0.236, True),  # SmolLM2-135M-Instruct, read correctly
        (0.034, 0.034, True),  # random weights, read correctly
        (0.034, 0.13, True),
        (0.034, 0.2, False),  # random weights, the scales of one projection belong to other rows
        (0.034, 0.6, False),  # random weights, all scales belong to other rows
        (0.001, 0.13, False),  # a model that is hardly trained, so that its logprobs are almost constant
        (0.35, 13.8, False),  # SmolLM2, all scales belong to other rows
        (5.0, 3.0, False),  # a model whose logprobs rounding changes beyond recognition
        (0.01, math.nan, False),
        (math.nan, 0.01, False),
    ],
)
def test_the_bound_is_what_rounding_does_to_the_model(
    rounding: float, engine_difference: float, is_accepted: bool
) -> None:
    generator = np.random.default_rng(0)
    compressed = [generator.normal(-5.0, 1.2, size) for size in (300, 200)]
    signs = [generator.choice([-1.0, 1.0], len(values)) for values in compressed]
    perturbed = [values + rounding for values in compressed]
    engine = [values + engine_difference * sign for values, sign in zip(compressed, signs, strict=True)]
    if is_accepted:
        check = check_engine(engine, compressed, perturbed, adds_exactly=True)
        assert check == pytest.approx((engine_difference, rounding))
    else:
        with pytest.raises(RuntimeError, match="vLLM misreads the compressed folder"):
            check_engine(engine, compressed, perturbed, adds_exactly=True)


def test_sums_that_saturate_are_accepted_only_on_processors_that_saturate() -> None:
    compressed = [np.linspace(-9.0, -1.0, 400)]
    perturbed, engine = [compressed[0] + 0.034], [compressed[0] + 0.159]  # measured with random weights
    assert check_engine(engine, compressed, perturbed, adds_exactly=False).difference == pytest.approx(0.159)
    with pytest.raises(RuntimeError, match=r"4\.7 times what rounding alone does to this model \(at most 4 is"):
        check_engine(engine, compressed, perturbed, adds_exactly=True)


def test_the_change_in_bits_per_byte_is_paired_by_document() -> None:
    num_bytes = np.full(4, 100)
    nats = np.array([100.0, 900.0, 50.0, 300.0])
    original = bits_per_byte(nats, num_bytes)
    change = bits_per_byte(1.01 * nats - nats, num_bytes)
    assert change.value == pytest.approx(0.01 * original.value)
    assert change.low > 0  # although the documents differ from each other far more than the two models do

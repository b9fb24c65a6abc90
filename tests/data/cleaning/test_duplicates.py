"""The settings of the step `near_duplicates`."""

import pytest

from data.cleaning.duplicates import NearDuplicates

SETTINGS = NearDuplicates()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ngram": 0}, r"x\.ngram: 0 must be at least 1"),
        ({"threshold": 0.0}, r"x\.threshold: with 0, all compared documents"),
        ({"threshold": 1.1}, r"x\.threshold: 1.1 must be between"),
        ({"bands": 0}, r"x\.bands: 0"),
        ({"bands": 450, "rows": 20}, r"x: 450 bands of 20 rows make signatures of 9000 values"),
    ],
)
def test_the_error_names_the_setting_that_is_out_of_range(wrong: dict, message: str) -> None:
    SETTINGS.check("x")
    with pytest.raises(ValueError, match=message):
        NearDuplicates(**wrong).check("x")

"""What a recipe of a tokenizer may say."""

from typing import Any

import pytest

from data.tokens.tokenizer_recipe import TokenizerRecipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"byte_fallback": True}, "byte_fallback: true is for kind unigram; bpe works on bytes anyway"),
        ({"kind": "wordpiece", "byte_fallback": True}, "wordpiece has no byte tokens"),
        ({"kind": "unigram", "lowercase": True}, "lowercase: true is for kind wordpiece, not unigram"),
        ({"character_coverage": 0.9}, "character_coverage: bpe covers every character"),
        ({"kind": "unigram", "character_coverage": 1.5}, r"character_coverage: 1.5 must be above 0 and at most 1"),
    ],
)
def test_a_setting_that_the_kind_would_not_heed_is_an_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerRecipe(**values).check()

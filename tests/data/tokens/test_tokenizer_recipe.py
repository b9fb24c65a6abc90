"""Tests of tokenizer recipes."""

from typing import Any

import pytest

from data.tokens.tokenizer_recipe import TokenizerRecipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"kind": "unigram", "pre_tokenizer": "gpt2"},
            "pre_tokenizer: gpt2 is only for `kind: bpe`; unigram has a rule",
        ),
        ({"byte_fallback": True}, "byte_fallback: true is only for `kind: unigram`; bpe always works on bytes"),
        ({"kind": "wordpiece", "byte_fallback": True}, "wordpiece has no byte tokens"),
        ({"kind": "unigram", "lowercase": True}, "lowercase: true is only for `kind: wordpiece`, not for unigram"),
        ({"character_coverage": 0.9}, "character_coverage: not for `kind: bpe`"),
        ({"kind": "unigram", "character_coverage": 1.5}, r"character_coverage: 1.5 must be above 0 and at most 1"),
    ],
)
def test_a_setting_that_the_kind_does_not_use_is_an_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenizerRecipe(**values).check()

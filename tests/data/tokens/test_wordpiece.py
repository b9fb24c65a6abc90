"""Tests of WordPiece vocabularies."""

from data.tokens.tokenizer_recipe import UNKNOWN, TokenizerRecipe
from data.tokens.tokenizer_training import train_tokenizer


def test_wordpiece_uses_the_longest_token_first_and_has_unknown_words() -> None:
    tokenizer = train_tokenizer(["hug hugs pugs"] * 9, size=20, recipe=TokenizerRecipe(kind="wordpiece"))
    # The count of (u, g) is 27 and that of (h, ug) is 18. Then (p, ug) and (hug, s) both have 9, and (p, ug) is merged
    # first, because the id of p is lower than that of hug.
    merged = [tokenizer.id_to_token(number) for number in range(8, 20)]
    assert merged == ["g", "h", "p", "s", "u", "##g", "##s", "##u", "##ug", "hug", "pug", "hugs"]
    assert tokenizer.encode("hugs  pugs hugx shug").tokens == ["hugs", "pug", "##s", UNKNOWN, UNKNOWN]


def test_characters_beyond_the_coverage_have_no_token() -> None:
    texts = ["ab ba"] * 999 + ["a\u03b6"]  # One of 4 x 999 + 2 characters is rare.
    for kind in ("wordpiece", "unigram"):
        for coverage, has_token in ((0.99, False), (1.0, True)):
            recipe = TokenizerRecipe(kind=kind, character_coverage=coverage)
            vocab = train_tokenizer(texts, size=30, recipe=recipe).get_vocab()
            assert ("\u03b6" in vocab) is has_token

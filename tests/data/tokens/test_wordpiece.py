"""WordPiece vocabularies."""

from data.tokens.tokenizer_recipe import UNKNOWN, TokenizerRecipe
from data.tokens.tokenizer_training import train_tokenizer


def test_wordpiece_takes_the_longest_token_first_and_knows_not_every_word() -> None:
    tokenizer = train_tokenizer(["hug hugs pugs"] * 9, size=20, recipe=TokenizerRecipe(kind="wordpiece"))
    # u g: 27, h ug: 18; then p ug before hug s, both 9, for p stands before hug in the ids.
    merged = [tokenizer.id_to_token(number) for number in range(8, 20)]
    assert merged == ["g", "h", "p", "s", "u", "##g", "##s", "##u", "##ug", "hug", "pug", "hugs"]
    assert tokenizer.encode("hugs  pugs hugx shug").tokens == ["hugs", "pug", "##s", UNKNOWN, UNKNOWN]


def test_characters_beyond_the_coverage_have_no_token() -> None:
    texts = ["ab ba"] * 999 + ["a\u03b6"]  # 4 x 999 + 2 characters, one of them rare
    for kind in ("wordpiece", "unigram"):
        for coverage, known in ((0.99, False), (1.0, True)):
            recipe = TokenizerRecipe(kind=kind, character_coverage=coverage)
            vocab = train_tokenizer(texts, size=30, recipe=recipe).get_vocab()
            assert ("\u03b6" in vocab) is known

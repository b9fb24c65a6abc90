"""The step `symbol_ratio`."""

from data.cleaning.symbol_ratio import SymbolRatio, symbol_ratio


def test_symbol_ratio_drops_texts_of_number_signs_and_digits() -> None:
    texts = [
        "# a # b",
        "one two three four # five six seven eight nine",
        "12 34 56 word",
        "Fine words … here and there, ten in all.",
    ]
    assert symbol_ratio(texts, SymbolRatio(max_symbols_per_word=0.2)).reasons == [
        "symbol_ratio/symbols_per_word",
        None,
        "symbol_ratio/alphabetic_words",
        None,
    ]


def test_symbols_are_compared_with_the_words_of_scripts_without_spaces() -> None:
    texts = ["这是一篇关于＃主题#的文章……它有很多词语,没有空格。", "สิทธิมนุษยชนเป็นของทุกคน…และทุกคนมีสิทธิ", "# … # …"]
    assert symbol_ratio(texts, SymbolRatio(max_symbols_per_word=0.15)).reasons == [
        None,
        None,
        "symbol_ratio/symbols_per_word",
    ]

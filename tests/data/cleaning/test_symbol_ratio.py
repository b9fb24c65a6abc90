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

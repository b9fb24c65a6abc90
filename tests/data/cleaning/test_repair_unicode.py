"""The step `repair_unicode` gives the same results as ftfy."""

import ftfy

from data.cleaning.repair_unicode import RepairUnicode, repair_unicode


def test_mojibake_and_entities_are_repaired_and_changed_documents_counted() -> None:
    outcome = repair_unicode(["naÃ¯ve", "a &amp; b", "plain\ttext\n", "bell\x07", "“quoted”"], RepairUnicode())
    assert outcome.texts == ["naïve", "a & b", "plain\ttext\n", "bell", "“quoted”"]
    assert outcome.counts == {"repair_unicode/documents": 3}


def test_ascii_texts_that_skip_ftfy_have_the_result_of_ftfy() -> None:
    ftfy_config = ftfy.TextFixerConfig(uncurl_quotes=False, explain=False)
    for code in range(128):
        text = f"before {chr(code)}amp; {chr(code)}[0m after\r\nend"
        assert repair_unicode([text], RepairUnicode()).texts == [ftfy.fix_text(text, ftfy_config)]
        lone = f"a{chr(code)}b"
        assert repair_unicode([lone], RepairUnicode()).texts == [ftfy.fix_text(lone, ftfy_config)]

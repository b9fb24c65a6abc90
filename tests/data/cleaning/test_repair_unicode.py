"""Repairing text: mojibake, entities, control characters, as ftfy does it."""

import ftfy

from data.cleaning.repair_unicode import RepairUnicode, repair_unicode


def test_repair_undoes_mojibake_and_entities_and_counts_documents() -> None:
    outcome = repair_unicode(["naÃ¯ve", "a &amp; b", "plain\ttext\n", "bell\x07", "“quoted”"], RepairUnicode())
    assert outcome.texts == ["naïve", "a & b", "plain\ttext\n", "bell", "“quoted”"]
    assert outcome.counts == {"repair_unicode/documents": 3}


def test_the_short_cut_for_ascii_changes_nothing_that_ftfy_would() -> None:
    ftfy_config = ftfy.TextFixerConfig(uncurl_quotes=False, explain=False)
    for code in range(128):
        text = f"before {chr(code)}amp; {chr(code)}[0m after\r\nend"
        assert repair_unicode([text], RepairUnicode()).texts == [ftfy.fix_text(text, ftfy_config)]
        lone = f"a{chr(code)}b"
        assert repair_unicode([lone], RepairUnicode()).texts == [ftfy.fix_text(lone, ftfy_config)]

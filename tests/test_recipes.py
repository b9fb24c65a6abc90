"""The recipes in configs/: each one is a config that a user can copy, and does what its comments say."""

import re
from pathlib import Path

import pytest

from data.cleaning.recipe import clean, name_and_settings
from data.document import Document
from jobs.corpus import CorpusConfig, check, check_fairness
from jobs.frame.config_loader import build, load_yaml

RECIPES = sorted((Path(__file__).parents[1] / "configs" / "recipes").glob("*.yaml"))

PAGE = """<html><head><title>Tides</title></head><body><nav><a href="/">Home</a> <a href="/more">More</a></nav><article>
<h1>How the tides work</h1>{paragraphs}</article><footer>All rights reserved.</footer></body></html>"""
PARAGRAPHS = (
    "The moon pulls on the water of the oceans, and that is why the sea rises and falls twice in a day along most of "
    "the coasts of the world.",
    "When the sun, the moon and the earth stand in one line, the two pulls add up, and the difference between high and "
    "low water is at its greatest.",
    "Sailors have known for many centuries that the time of high water moves by about fifty minutes from one day to "
    "the next, as the moon goes around.",
    "In narrow bays the water can rise by more than ten metres, because the wave that comes in from the open sea has "
    "no other place to go.",
    "A table of the tides is made for every large harbour a year ahead, and it is right to within a few minutes unless "
    "a storm holds the water back.",
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_config_without_mistakes(path: Path) -> None:
    config = build(CorpusConfig, load_yaml(path), label=str(path))
    assert config.fairness_budget == 0.05
    check(config)
    check_fairness(config)


def test_the_recipe_of_the_page_on_corpora_is_a_config_without_mistakes(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "corpora.md").read_text()
    block = "".join(re.findall(r"^```yaml\n# corpus.yaml\n(.*?)^```", page, re.M | re.S))
    evaluation_set = tmp_path / "set.txt"
    evaluation_set.write_text("Here are the questions that the model must not have learned from its corpus.")
    (tmp_path / "corpus.yaml").write_text(
        block.replace("evals/*.jsonl", str(evaluation_set)).replace("[question]", "[]")
    )
    config = build(CorpusConfig, load_yaml(tmp_path / "corpus.yaml"))
    assert [name_and_settings(step)[0] for step in config.steps if step.keep] == ["toxicity"]
    check(config)
    check_fairness(config)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_keeps_good_text_and_drops_noise(path: Path) -> None:
    config = build(CorpusConfig, load_yaml(path), label=str(path))
    names = [name_and_settings(step)[0] for step in config.steps]
    prose = "\n\n".join(PARAGRAPHS)
    good = (
        PAGE.format(paragraphs="".join(f"<p>{text}</p>" for text in PARAGRAPHS)) if "extract_html" in names else prose
    )
    if path.stem == "books":
        good = "\n\n".join(f"Chapter {n}. {text}" for n in range(6) for text in PARAGRAPHS)
    noise = "<p>@@@ ### buy</p>" if "extract_html" in names else "@@@ ### buy"
    result = clean([Document("s/good", good, "s"), Document("s/noise", noise, "s")], config.steps)
    assert [document.id for document in result.kept] == ["s/good"], result.dropped
    assert "The moon pulls on the water" in result.kept[0].text and "Home" not in result.kept[0].text

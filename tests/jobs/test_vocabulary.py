"""The vocabulary stage: what it learns from, and what it says about itself."""

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.plain import from_plain, to_plain
from cluster.storage import Storage
from cluster.tracking import Tracker
from data.corpus.accounting import SourceCounts, summarize
from data.document import unit_hash
from data.tokens.certificate import Certificate
from data.tokens.measures import VocabularySummary, fallback_ids
from data.tokens.tokenizer import fingerprint, load_encoder, save_tokenizer
from data.tokens.tokenizer_recipe import UNKNOWN, TokenizerRecipe
from data.tokens.tokenizer_training import train_tokenizer
from data.words import plain_words
from jobs.frame.artifact import WORK, Artifact
from jobs.frame.config_loader import build
from jobs.frame.identity import changed_fields
from jobs.frame.record import Record
from jobs.frame.stage import Context
from jobs.vocabulary import STAGE, VocabularyConfig, recipe_of

pytestmark = pytest.mark.usefixtures("without_ray")


def corpus_artifact(
    folder: Path,
    documents: list[tuple[str, str, str]],
    *,
    parts: int = 2,
    languages: Mapping[str, object] | None = None,
) -> Artifact:
    """A corpus with (id, text, source) rows, and the language of those that are in `languages`."""
    (folder / "documents").mkdir(parents=True)
    rows = [
        {"id": name, "text": text, "source": source, "metadata": json.dumps(_language(name, languages or {}))}
        for name, text, source in documents
    ]
    for part in range(parts):
        pq.write_table(pa.Table.from_pylist(rows[part::parts]), folder / f"documents/part-{part:05d}.parquet")
    counts = {source: SourceCounts() for source in sorted({source for _, _, source in documents})}
    summary = replace(
        summarize(counts, [], {}), bytes=sum(len(text.encode()) for _, text, _ in documents), content_digest="c"
    )
    digest = hash_of(rows)
    record = Record(id="corpus-1", stage="corpus", kind="corpus", digest=digest, summary=to_plain(summary))
    return Artifact(Storage(str(folder)), record)


def _language(name: str, languages: Mapping[str, object]) -> dict[str, object]:
    return {"language": languages[name]} if name in languages else {}


def hash_of(rows: list[dict[str, str]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def run(corpus: Artifact, folder: Path, **values: Any) -> VocabularySummary:
    config = build(VocabularyConfig, {"corpus": "corpus", **values})
    STAGE.check(config)
    output = Storage(str(folder))
    tracker = Tracker(storage=output, run_id="test", name="vocabulary", group="test")
    summary = STAGE.run(config, Context(output=output, inputs={"corpus": corpus}, tracker=tracker))
    assert isinstance(summary, VocabularySummary)
    return summary


def documents(number: int, words: int = 40) -> list[tuple[str, str, str]]:
    text = "the quick brown fox jumps over the lazy dog and naïve cats "
    return [(f"s/{n}", f"{text * (words // 10)} {n}", ("prose", "talk")[n % 2]) for n in range(number)]


def test_the_summary_measures_the_tokenizer(tmp_path: Path) -> None:
    corpus = corpus_artifact(tmp_path / "corpus", documents(40))
    summary = run(corpus, tmp_path / "out", size=300)
    encoder = load_encoder(tmp_path / "out/tokenizer")
    texts = [text for _, text, _ in documents(40)]
    tokens = sum(len(encoder.encode(text).ids) for text in texts)
    assert summary.bytes_per_token == pytest.approx(sum(len(text.encode()) for text in texts) / tokens)
    assert set(summary.bytes_per_token_by_source) == {"prose", "talk"}
    assert summary.round_trip_failures == 0 and summary.measured_documents == 40
    assert summary.sampled_documents == sum(unit_hash(name, "split") >= 0.1 for name, _, _ in documents(40)) < 40
    used = {token for text in texts for token in encoder.encode(text).ids}
    assert summary.unused_tokens == 300 - len(used)
    assert summary.fingerprint == fingerprint(tmp_path / "out/tokenizer")


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_a_sample_of_any_size_leaves_out_what_validation_takes(tmp_path: Path, share: float) -> None:
    rows = documents(2000, words=400)
    # The first tenth by the split's hash, which shards would hold out, is in letters that occur nowhere else.
    rows = [(name, "ζ ξ ψ " * 300 if unit_hash(name, "split") < 0.1 else text, source) for name, text, source in rows]
    corpus = corpus_artifact(tmp_path / "corpus", rows)
    total = corpus.summary["bytes"]
    assert total > 2**21
    summary = run(corpus, tmp_path / "out", size=300, sample_mib=int(share * total / 2**20))
    assert summary.sampled_bytes < min(0.8, share) * total if share < 1 else summary.sampled_bytes > 0.8 * total
    encoder = load_encoder(tmp_path / "out/tokenizer")
    assert len(encoder.encode("ζξψ").ids) == 6  # two bytes each: never merged


def test_a_size_that_the_text_cannot_fill_is_an_error(tmp_path: Path) -> None:
    corpus = corpus_artifact(tmp_path / "corpus", documents(4))
    with pytest.raises(ValueError, match=r"size: .* bytes of text give only \d+ tokens, not 2,000"):
        run(corpus, tmp_path / "out", size=2000)
    with pytest.raises(ValueError, match="size: 262 must be above 262"):
        STAGE.check(build(VocabularyConfig, {"corpus": "corpus", "size": 262}))
    with pytest.raises(ValueError, match=r"held_out_fraction: 1.0 must be at least 0 and below 1"):
        STAGE.check(build(VocabularyConfig, {"corpus": "corpus", "held_out_fraction": 1.0}))


def test_the_measures_are_told_by_source_and_language(tmp_path: Path) -> None:
    rows = documents(40)
    languages: dict[str, object] = {name: ("en", "fr", "en")[n % 3] for n, (name, _, _) in enumerate(rows[:30])}
    languages |= {name: ["en", "fr"] for name, _, _ in rows[30:35]}  # a column of the source that has this name
    summary = run(corpus_artifact(tmp_path / "corpus", rows, languages=languages), tmp_path / "out", size=300)
    encoder = load_encoder(tmp_path / "out/tokenizer")

    def rates(chosen: list[str]) -> tuple[float, float]:
        tokens = sum(len(encoder.encode(text).ids) for text in chosen)
        num_words = sum(len(plain_words(text)) for text in chosen)
        return sum(len(text.encode()) for text in chosen) / tokens, tokens / num_words

    everything = rates([text for _, text, _ in rows])
    assert (summary.bytes_per_token, summary.fertility) == pytest.approx(everything)
    assert set(summary.fertility_by_source) == {"prose", "talk"}
    assert set(summary.fertility_by_language) == {"en", "fr"}  # five documents name none, and five have a list
    for by, name, chosen in (
        ("source", "talk", [text for _, text, source in rows if source == "talk"]),
        ("language", "fr", [text for own, text, _ in rows if languages.get(own) == "fr"]),
    ):
        measured = to_plain(summary)
        found = measured[f"bytes_per_token_by_{by}"][name], measured[f"fertility_by_{by}"][name]
        assert found == pytest.approx(rates(chosen))


def various(number: int) -> list[tuple[str, str, str]]:
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdluéñ日", k=draw.randint(1, 8))) for _ in range(400)]
    return [(f"s/{n}", f"{' '.join(draw.choices(words, k=50))}\n\n{n}", ("a", "b", "c")[n % 3]) for n in range(number)]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_any_number_of_parts_gives_the_bytes_of_training_in_one_process(tmp_path: Path, kind: Any) -> None:
    rows = various(300)
    values = {"kind": kind, "size": 600, "byte_fallback": kind == "unigram"}
    recipe = recipe_of(build(VocabularyConfig, {"corpus": "corpus", **values}))
    learned = train_tokenizer(
        (text for name, text, _ in rows if unit_hash(name, "split") >= 0.1), size=600, recipe=recipe
    )
    save_tokenizer(learned, tmp_path / "alone")
    summaries = []
    for parts in (1, 2, 7):
        corpus = corpus_artifact(tmp_path / f"corpus-{parts}", rows, parts=parts)
        summaries.append(run(corpus, tmp_path / f"out-{parts}", **values))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            made = (tmp_path / f"out-{parts}/tokenizer" / name).read_bytes()
            assert made == (tmp_path / "alone" / name).read_bytes()
        assert not (tmp_path / f"out-{parts}/work").exists()
    assert summaries[0] == summaries[1] == summaries[2]
    assert summaries[0].round_trip_failures == summaries[0].unknown_tokens == 0


def test_unknown_characters_are_counted(tmp_path: Path) -> None:
    rows = [(name, f"{text} ζ" if name.endswith("0") else text, source) for name, text, source in various(300)]
    summary = run(corpus_artifact(tmp_path / "corpus", rows), tmp_path / "out", size=600, kind="wordpiece")
    encoder = load_encoder(tmp_path / "out/tokenizer")
    assert summary.unknown_tokens == sum(encoder.encode(text).tokens.count(UNKNOWN) for _, text, _ in rows) == 30
    assert summary.round_trip_failures == 30


def test_answers_about_another_corpus_are_not_taken(tmp_path: Path) -> None:
    """A run that was killed before its end leaves work/; the corpus is then built anew under the same name."""
    first, second = various(200), [(name, text[::-1], source) for name, text, source in various(200)]
    killed = corpus_artifact(tmp_path / "first", first)
    with pytest.raises(ValueError, match="give only"):
        run(killed, tmp_path / "out", size=200_000)
    assert (tmp_path / "out" / WORK / "count").exists()
    run(corpus_artifact(tmp_path / "second", second), tmp_path / "out", size=600)
    run(corpus_artifact(tmp_path / "again", second), tmp_path / "fresh", size=600)
    assert fingerprint(tmp_path / "out/tokenizer") == fingerprint(tmp_path / "fresh/tokenizer")


def test_what_was_counted_before_a_kill_is_not_counted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = corpus_artifact(tmp_path / "corpus", various(200), parts=4)
    with monkeypatch.context() as broken:
        broken.setattr("jobs.vocabulary.train_on_word_counts", _fail)
        with pytest.raises(RuntimeError, match="killed"):
            run(corpus, tmp_path / "out", size=600)
    monkeypatch.setattr("data.tokens.word_counts.count_words", _fail)
    summary = run(corpus, tmp_path / "out", size=600)
    monkeypatch.undo()
    assert summary.sampled_documents == sum(unit_hash(name, "split") >= 0.1 for name, _, _ in various(200))


def _fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("killed")


def test_a_default_vocabulary_keeps_its_identity() -> None:
    assert changed_fields(build(VocabularyConfig, {"corpus": "corpus", "size": 4096})) == {"size": 4096}


def test_a_setting_that_the_kind_would_not_heed_is_refused() -> None:
    for values, message in (
        ({"byte_fallback": True}, "byte_fallback: true is only for `kind: unigram`"),
        ({"kind": "unigram", "size": 250, "byte_fallback": True}, "size: 250 must be above 263"),
        ({"execution": {"workers": -1}}, "execution.workers: -1 must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            STAGE.check(build(VocabularyConfig, {"corpus": "corpus", **values}))


@pytest.mark.slow
def test_workers_count_side_by_side_to_the_same_bytes(
    ray_session: None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rows = various(300)
    without = run(corpus_artifact(tmp_path / "one", rows, parts=1), tmp_path / "alone", size=600)
    request.getfixturevalue("monkeypatch").undo()  # from here on Ray itself
    several = run(
        corpus_artifact(tmp_path / "seven", rows, parts=7),
        tmp_path / "several",
        size=600,
        execution={"workers": 2},
    )
    assert several == without
    made = [(tmp_path / name / "tokenizer/tokenizer.json").read_bytes() for name in ("alone", "several")]
    assert made[0] == made[1]


HINDI, THAI = "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता", "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน"


def write_texts(folder: Path) -> str:
    """Write a text in Hindi as HTML and one in Thai as plain text. Returns the glob of both."""
    folder.mkdir()
    page = f"<!doctype html><html lang='hi'><head><title>x</title></head><body><p>{HINDI}</p></body></html>"
    (folder / "hin.html").write_text(page)
    (folder / "tha.txt").write_text(THAI)
    return f"{folder}/*"


def test_the_certificate_measures_the_languages_of_the_corpus_and_of_texts(tmp_path: Path) -> None:
    rows = documents(40)
    languages = {name: "en" for name, _, _ in rows}
    corpus = corpus_artifact(tmp_path / "corpus", rows, languages=languages)
    texts = write_texts(tmp_path / "texts")
    summary = run(corpus, tmp_path / "out", size=300, certificate={"texts": [texts]})
    certificate = from_plain(Certificate, json.loads((tmp_path / "out/certificate.json").read_text()))
    assert set(certificate.corpus) == {"en"} and set(certificate.texts) == {"hin", "tha"}
    assert summary.certified_languages == 3
    encoder = load_encoder(tmp_path / "out/tokenizer")
    for language, text in (("hin", HINDI), ("tha", THAI)):
        measures = certificate.texts[language]
        ids = encoder.encode(text).ids
        assert (measures.texts, measures.bytes, measures.tokens) == (1, len(text.encode()), len(ids))
        assert measures.fertility == len(ids) / len(plain_words(text))
        # Nothing was learned in these scripts, so every token but the spaces is a byte of a character.
        assert measures.fallback_tokens == len(ids) - text.count(" ")
        assert measures.round_trip_failures == 0
    assert certificate.corpus["en"].texts == 40
    assert certificate.corpus["en"].fallback_tokens == 0  # every token with a byte of ï also has a letter


def test_a_language_above_a_limit_stops_the_stage_and_keeps_what_was_written(tmp_path: Path) -> None:
    corpus = corpus_artifact(tmp_path / "corpus", documents(40))
    texts = write_texts(tmp_path / "texts")

    def run_with(name: str, *limits: dict[str, Any]) -> VocabularySummary:
        return run(corpus, tmp_path / name, size=300, certificate={"texts": [texts], "limits": list(limits)})

    with pytest.raises(
        ValueError, match=r"hin \(texts\): byte fallback 0\.\d+, at most 0\.5; tha .* is kept in"
    ) as error:
        run_with("out", {"max_byte_fallback": 0.5})
    assert str(tmp_path / "out/tokenizer") in str(error.value) and "certificate.json" in str(error.value)
    assert load_encoder(tmp_path / "out/tokenizer").get_vocab_size() == 300
    assert (tmp_path / "out/certificate.json").exists()
    with pytest.raises(ValueError, match=r"certificate: tha \(texts\): tokens per word [\d.]+, at most 2\.0; add text"):
        run_with("thai", {"languages": ["tha"], "max_tokens_per_word": 2})
    with pytest.raises(ValueError, match=r"limits\[1\]: no text in khm was measured"):
        run_with("khmer", {"max_tokens_per_word": 1000}, {"languages": ["khm"], "max_tokens_per_word": 9})
    run_with("passes", {"languages": ["hin"], "max_tokens_per_word": 1000, "max_byte_fallback": 1})


def test_wrong_limits_and_texts_are_refused_before_the_stage_runs(tmp_path: Path) -> None:
    for limit, message in (
        ({"languages": ["hi"]}, r"certificate.limits\[0\]: it limits nothing; set max_tokens_per_word"),
        ({"max_tokens_per_word": 0}, r"certificate.limits\[0\].max_tokens_per_word: 0.0 must be above 0"),
        ({"max_byte_fallback": 2}, r"certificate.limits\[0\].max_byte_fallback: 2.0 must be between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            STAGE.check(build(VocabularyConfig, {"corpus": "corpus", "certificate": {"limits": [limit]}}))
    (tmp_path / "rus.txt").write_bytes("привет".encode("cp1251"))
    config = build(VocabularyConfig, {"corpus": "corpus", "certificate": {"texts": [f"{tmp_path}/*.txt"]}})
    with pytest.raises(ValueError, match=r"certificate.texts: .*rus.txt is not UTF-8"):
        STAGE.check_sources(config)


def test_tokens_of_parts_of_characters_are_fallback(tmp_path: Path) -> None:
    for kind, expected in (
        ("bpe", {"a": False, "Ġa": False, "à": True, "à¤": True, "à¤ķ": False, "Ġà": True, "<|end|>": False}),
        ("unigram", {"a": False, "<0x0A>": True, UNKNOWN: True, "<|end|>": False}),
        ("wordpiece", {"a": False, UNKNOWN: True, "<|end|>": False}),
    ):
        recipe = TokenizerRecipe(kind=kind, byte_fallback=kind == "unigram")  # pyright: ignore[reportArgumentType]
        size = 400 if kind == "unigram" else 330
        texts = ["a aa कक ख्या " * 30, "b c d e f g h i j k l m n o p"]
        encoder = train_tokenizer(texts, size=min(size, 300 if kind == "wordpiece" else size), recipe=recipe)
        is_fallback = fallback_ids(encoder)
        vocab = encoder.get_vocab()
        for token, value in expected.items():
            if token in vocab:
                assert is_fallback[vocab[token]] == value, (kind, token)
        assert {token for token in expected if expected[token]} & vocab.keys()

"""The step `decontaminate` finds all copied parts of evaluation sets, and nothing else."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

import data.cleaning.decontaminate as decontaminate_module
from data.cleaning.decontaminate import Decontaminate, check_files, decontaminate, evaluation_sets, with_pinned_files

VOCABULARY = [f"{first}{second}{third}" for first in "bdfgk" for second in "aeiou" for third in "lmnrst"]  # 150 words


def sentence(generator: random.Random, num_words: int) -> str:
    return " ".join(generator.choice(VOCABULARY) for _ in range(num_words))


def write_jsonl(path: Path, items: Sequence[object]) -> str:
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    return str(path)


def num_strings(settings: Decontaminate) -> int:
    return sum(evaluation_sets(settings).num_strings)


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[at : at + n]) for at in range(len(words) - n + 1)}


def disguised(words: list[str], generator: random.Random) -> str:
    """Return the words with changed case, punctuation and line breaks."""
    made = [generator.choice([str.upper, str.capitalize, str])(word) for word in words]
    return "".join(word + generator.choice([" ", "\n", ", ", " – ", ".\n\n", "\t", "-", "’ “"]) for word in made)


def test_every_copied_13_gram_is_found_and_no_other_document_is_dropped(tmp_path: Path) -> None:
    generator = random.Random(7)
    items = [sentence(generator, generator.randint(13, 60)) for _ in range(200)]
    settings = Decontaminate(files=[write_jsonl(tmp_path / "set.jsonl", [{"question": item} for item in items])])
    copied, near = [], []
    for item in items:
        words = item.split()
        start = generator.randint(0, len(words) - 13)
        run = words[start : start + 13]
        around = sentence(generator, 80).split(), sentence(generator, 80).split()
        copied.append(f"{' '.join(around[0])} {disguised(run, generator)} {' '.join(around[1])}")
        broken = [*run[:6], "xylophone", *run[7:]]  # 12 of the 13 words, at their positions
        near.append(f"{' '.join(around[0])} {' '.join(broken)} {' '.join(around[1])}")
    clean = [sentence(generator, generator.randint(0, 200)) for _ in range(2000)]
    known = set().union(*(ngrams(item, 13) for item in items))
    assert not any(ngrams(text, 13) & known for text in [*clean, *near])  # checked with a separate implementation

    outcome = decontaminate([*copied, *clean, *near], settings)
    assert outcome.reasons == ["decontaminate/set"] * 200 + [None] * 2200
    assert outcome.texts == [*copied, *clean, *near]
    assert num_strings(settings) == 200


def test_it_agrees_with_sets_of_ngrams_on_a_tiny_vocabulary(tmp_path: Path) -> None:
    generator = random.Random(1)
    for n in (1, 2, 3, 5):
        items = [" ".join(generator.choice("abcde") for _ in range(generator.randint(n, 9))) for _ in range(6)]
        files = [write_jsonl(tmp_path / f"{n}.jsonl", items)]
        texts = [" ".join(generator.choice("abcdefgh") for _ in range(generator.randint(0, 12))) for _ in range(300)]
        known = set().union(*(ngrams(item, n) for item in items))
        expected = [f"decontaminate/{n}" if ngrams(text, n) & known else None for text in texts]
        assert decontaminate(texts, Decontaminate(files=files, ngram=n, min_words=1)).reasons == expected
        assert None in expected and len(set(expected)) == 2


def test_a_short_item_must_occur_completely_and_a_shorter_item_is_ignored(tmp_path: Path) -> None:
    eight, seven = "one two three four five six seven eight", "red orange yellow green blue indigo violet"
    long = "a b c d e f g h i j k l m n"
    settings = Decontaminate(files=[write_jsonl(tmp_path / "set.jsonl", [eight, seven, long])])
    texts = [
        f"and {eight.upper()}!",
        "one two three four five six seven",
        seven,
        "x a b c d e f g h i j k l x",  # 12 words of the long item
        "x a b c d e f g h i j k l m x",  # 13 words of the long item
        "two three four five six seven eight one",
    ]
    found = "decontaminate/set"
    assert decontaminate(texts, settings).reasons == [found, None, None, None, found, None]
    assert num_strings(settings) == 2


def test_an_ngram_does_not_span_two_documents_or_two_items(tmp_path: Path) -> None:
    items = ["a b c d", "e f g h"]
    settings = Decontaminate(files=[write_jsonl(tmp_path / "set.jsonl", items)], ngram=4, min_words=2)
    assert decontaminate(["c d e f", "a b", "c d"], settings).reasons == [None, None, None]
    assert decontaminate(["x a b c d", "", "e f g h"], settings).reasons == [
        "decontaminate/set",
        None,
        "decontaminate/set",
    ]
    assert decontaminate([], settings).reasons == []
    assert decontaminate(["", "…"], settings).reasons == [None, None]


def test_the_reason_names_the_first_set_in_the_order_of_the_files(tmp_path: Path) -> None:
    first, second = "a b c d e f g h", "s t u v w x y z"
    files = [
        write_jsonl(tmp_path / "alpha.dev.jsonl", [first]),
        write_jsonl(tmp_path / "beta.jsonl", [second, first]),
    ]
    texts = [f"{second} {first}", second, first]
    reasons = decontaminate(texts, Decontaminate(files=files)).reasons
    assert reasons == ["decontaminate/alpha", "decontaminate/beta", "decontaminate/alpha"]
    for folder in ("gsm", "boolq"):
        (tmp_path / folder).mkdir()
        write_jsonl(tmp_path / folder / "test.jsonl", [f"{folder} {first}"])
    same = Decontaminate(files=[str(tmp_path / "*" / "test.jsonl")], ngram=9)
    assert decontaminate([f"gsm {first}", f"boolq {first}"], same).reasons == [
        "decontaminate/gsm-test",
        "decontaminate/boolq-test",
    ]


def test_columns_select_the_compared_strings_and_by_default_all_are_compared(tmp_path: Path) -> None:
    question, answer, choice = "a b c d e f g h", "i j k l m n o p", "q r s t u v w x"
    item = {"question": question, "answer": answer, "meta": {"choices": ["no", choice]}, "label": 3}
    files = [write_jsonl(tmp_path / "set.jsonl", [item, {"answer": None}])]
    texts = [question, answer, choice]
    found = "decontaminate/set"
    assert decontaminate(texts, Decontaminate(files=files)).reasons == [found] * 3
    assert decontaminate(texts, Decontaminate(files=files, columns=["answer"])).reasons == [None, found, None]
    assert decontaminate(texts, Decontaminate(files=files, columns=["meta"])).reasons == [None, None, found]
    with pytest.raises(ValueError, match=r"steps\[2\].decontaminate.files: .*no item has the column 'anwser'"):
        check_files(Decontaminate(files=files, columns=["anwser"]), "steps[2].decontaminate")


def test_ideographs_are_words_and_unicode_forms_are_normalized(tmp_path: Path) -> None:
    item = "今天天气很好我们想沿着河走到老磨坊去"
    composed = "Cafe\u0301 ﬁne two three four five six seven"
    settings = Decontaminate(files=[write_jsonl(tmp_path / "set.jsonl", [item, composed])])
    texts = ["他说：" + item[:13] + "。", item[:12], "café fine TWO three four five six seven"]
    assert decontaminate(texts, settings).reasons == ["decontaminate/set", None, "decontaminate/set"]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    write_jsonl(path, ["a b c d e f g h"])
    settings = Decontaminate(files=[str(path)])
    assert decontaminate(["a b c d e f g h"], settings).reasons == ["decontaminate/set"]
    write_jsonl(path, ["s t u v w x y z and more"])
    assert decontaminate(["a b c d e f g h"], settings).reasons == [None]


def test_pinned_files_are_read_once_and_changed_content_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "set.jsonl"
    write_jsonl(path, ["a b c d e f g h"])
    settings = with_pinned_files(Decontaminate(files=[str(tmp_path / "*.jsonl")]))
    assert settings.files == [str(path)] and with_pinned_files(settings) == settings
    settings.check("steps[0].decontaminate")
    assert decontaminate(["a b c d e f g h"], settings).reasons == ["decontaminate/set"]
    write_jsonl(path, ["s t u v w x y z"])
    write_jsonl(tmp_path / "second.jsonl", ["i j k l m n o p"])
    texts = ["a b c d e f g h", "s t u v w x y z", "i j k l m n o p"]
    with monkeypatch.context() as without_files:
        without_files.setattr("fsspec.open", lambda *of, **more: pytest.fail("a file is opened"))
        assert decontaminate(texts, settings).reasons == ["decontaminate/set", None, None]
    decontaminate_module._read_sets.cache_clear()  # as in a new process
    with pytest.raises(ValueError, match=r"set.jsonl has changed since the run started"):
        decontaminate(texts, settings)
    with pytest.raises(ValueError, match=r"fingerprints: there are 1 for 2 files"):
        Decontaminate(files=["a", "b"], fingerprints=["sha256:0"]).check("steps[0].decontaminate")


def test_evaluation_sets_that_cannot_match_are_an_error(tmp_path: Path) -> None:
    field_path = "steps[0].decontaminate"
    with pytest.raises(ValueError, match=r"files: the list is empty; name the files of at least one evaluation set"):
        Decontaminate().check(field_path)
    with pytest.raises(ValueError, match=r"steps\[0\].decontaminate.ngram: 5 must be at least min_words \(8\)"):
        Decontaminate(files=["x"], ngram=5).check(field_path)
    with pytest.raises(ValueError, match=r"no string of short has min_words \(8\) words"):
        check_files(Decontaminate(files=[write_jsonl(tmp_path / "short.jsonl", ["too few words"])]), field_path)
    with pytest.raises(ValueError, match=r"decontaminate.files: .*matches no file"):
        check_files(Decontaminate(files=[str(tmp_path / "none*.jsonl")]), field_path)
    (tmp_path / "set.xml").write_text("<a/>")
    with pytest.raises(ValueError, match=r"not from .xml"):
        check_files(Decontaminate(files=[str(tmp_path / "set.xml")]), field_path)
    (tmp_path / "bad.jsonl").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"bad.jsonl: not readable as .jsonl"):
        check_files(Decontaminate(files=[str(tmp_path / "bad.jsonl")]), field_path)
    check_files(Decontaminate(files=[write_jsonl(tmp_path / "good.jsonl", ["a b c d e f g h"])]), field_path)

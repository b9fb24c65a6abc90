"""The step `decontaminate` finds all copied parts of evaluation sets, and nothing else."""

import importlib.util
import json
import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest

import data.cleaning.decontaminate as decontaminate_module
from data.cleaning.decontaminate import Decontaminate, check_files, decontaminate, evaluation_sets, with_pinned_files
from data.cleaning.word_runs import UnitsPerWord

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


def test_unicode_forms_are_normalized(tmp_path: Path) -> None:
    composed = "Cafe\u0301 ﬁne two three four five six seven"
    settings = Decontaminate(files=[write_jsonl(tmp_path / "set.jsonl", [composed])])
    assert decontaminate(["café fine TWO three four five six seven"], settings).reasons == ["decontaminate/set"]


def reasons(tmp_path: Path, questions: Sequence[str], texts: list[str]) -> list[str | None]:
    return decontaminate(texts, Decontaminate(files=[write_jsonl(tmp_path / "set.jsonl", questions)])).reasons


def test_an_ngram_has_as_many_units_as_hold_thirteen_words(tmp_path: Path) -> None:
    """13 words are 13 * 1.7 = 22.1 ideographs or 39 syllables, and 8 words are 13.6 ideographs or 24 syllables."""
    chinese = "今天天气很好我们想沿着河走到老磨坊去看一看那里的水车和花园"  # 29 ideographs
    thai = "".join(f"{first}{vowel}" for first in "กขคงจ" for vowel in "ะาิีึืุู")  # 40 syllables
    questions, found = [chinese, thai], "decontaminate/set"
    texts = [f"他说{chinese[:23]}。", f"他说{chinese[:22]}。", f"เขา{thai[:78]}", f"เขา{thai[:76]}"]
    assert reasons(tmp_path, questions, texts) == [found, None, found, None]
    shorter = [chinese[:14], chinese[15:28], thai[:48], thai[50:96]]
    assert reasons(tmp_path, shorter, [f"说{text}吗" for text in shorter]) == [found, None, found, None]
    mixed = "我们用 Linux 和 Python 写了一个小程序来计算今天的平均气温和湿度"  # 2 words and 24 ideographs
    texts = ["看" + mixed[: len(mixed) - at] for at in (5, 6)]  # 2 words and 19 or 18 ideographs: 13.2 and 12.6 words
    assert reasons(tmp_path, [mixed], texts) == [found, None]


def test_words_that_differ_in_vowel_signs_are_different(tmp_path: Path) -> None:
    questions = [
        "किताब में लिखा है कि वह दिन भर काम करता था और शाम को घर आता था",
        "বাংলাদেশের সবচেয়ে বড় নদীর নাম কী এবং সেটি কোন কোন জেলার মধ্য দিয়ে বয়ে গেছে",
        "مَنْ كَتَبَ هٰذَا الكِتَابَ وَمَتَى طُبِعَ أَوَّلَ مَرَّةٍ فِي المَدِينَةِ القَدِيمَةِ وَكَمْ صَفْحَةً فِيهِ",
        "តើទន្លេមេគង្គហូរកាត់ប្រទេសណាខ្លះហើយវាមានប្រវែងប៉ុន្មានគីឡូម៉ែត្រពីប្រភពដល់សមុទ្រ",
    ]
    signs = str.maketrans("िাَើ", "ीিُឺ")
    others = [question.translate(signs) for question in questions]
    assert all(other != question for other, question in zip(others, questions, strict=True))
    assert reasons(tmp_path, questions, others) == [None] * 4
    assert reasons(tmp_path, questions, questions) == ["decontaminate/set"] * 4


def test_a_long_official_name_is_no_contamination(tmp_path: Path) -> None:
    names = [
        "全国人民代表大会常务委员会",  # Standing Committee of the National People's Congress
        "联合国教育科学及文化组织",
        "สำนักงานคณะกรรมการการศึกษาขั้นพื้นฐาน",
        "独立行政法人国立文化財機構東京国立博物館",
        "United Nations Educational, Scientific and Cultural Organization",
    ]
    questions = [
        "{}的主席是谁？",
        "{}的总部在哪里？",
        "{}ก่อตั้งเมื่อใด",
        "{}の館長は誰ですか？",
        "Where is the seat of {}?",
    ]
    texts = ["昨天{}举行了会议。", "他在{}工作。", "ครูทำงานที่{}มาแล้วหลายปี", "{}へ行きました。", "She works for the {}."]
    asked = [question.format(name) for question, name in zip(questions, names, strict=True)]
    assert reasons(tmp_path, asked, [text.format(name) for text, name in zip(texts, names, strict=True)]) == [None] * 5


def test_a_verbatim_question_inside_a_sentence_of_a_script_without_spaces_is_found(tmp_path: Path) -> None:
    questions = [
        "แม่น้ำสายใดที่ยาวที่สุดในประเทศไทยและไหลผ่านจังหวัดใดบ้าง",
        "តើទន្លេណាវែងជាងគេនៅក្នុងប្រទេសកម្ពុជាហើយហូរកាត់ខេត្តណាខ្លះ",
        "မြန်မာနိုင်ငံတွင်အရှည်ဆုံးမြစ်သည်အဘယ်မြစ်ဖြစ်ပြီးမည်သည့်မြို့များကိုဖြတ်စီးသနည်း",
        "日本で一番長い川はどの川で、どの県を流れていますか",
        "中国最长的河流是哪一条，它流经哪些省份？",
    ]
    around = [
        ("ครูถามว่า", "แล้วเด็กก็ตอบ"),
        ("គ្រូសួរថា", "ហើយសិស្សឆ្លើយ"),
        ("ဆရာက", "ဟုမေးသည်"),
        ("先生は", "と聞いた"),
        ("老师问", "学生没有回答"),
    ]
    texts = [f"{before}{question}{after}" for question, (before, after) in zip(questions, around, strict=True)]
    assert reasons(tmp_path, questions, texts) == ["decontaminate/set"] * 5
    assert reasons(tmp_path, questions, [before + after for before, after in around]) == [None] * 5


def amount(words: Sequence[str]) -> Fraction:
    return sum(
        (Fraction(1) if word.isascii() else Fraction(10, 17) if word == "中" else Fraction(1, 3) for word in words),
        Fraction(),
    )


def all_ngrams(question: list[str], ngram: int) -> list[list[str]]:
    """The definition: the shortest runs that hold the amount of `ngram` words, or the question if it holds less."""
    runs = [question[at:end] for at in range(len(question)) for end in range(at + 1, len(question) + 1)]
    return [run for run in runs if amount(run) >= ngram > amount(run[:-1])] or [question]


def test_it_agrees_with_a_comparison_of_all_runs_on_mixed_scripts(tmp_path: Path) -> None:
    draw = random.Random(3)
    for ngram in (2, 3, 4):
        items = [draw.choices(["a", "b", "中", "กา"], k=draw.randint(3, 14)) for _ in range(12)]
        items = [item for item in items if amount(item) >= 2]
        path = write_jsonl(tmp_path / "mixed.jsonl", [" ".join(item) for item in items])
        texts = [draw.choices(["a", "b", "中", "กา", "x"], k=draw.randint(0, 16)) for _ in range(300)]
        known = {tuple(run) for item in items for run in all_ngrams(item, ngram)}
        expected = [
            any(tuple(text[at:end]) in known for at in range(len(text)) for end in range(at + 1, len(text) + 1))
            for text in texts
        ]
        outcome = decontaminate(
            [" ".join(text) for text in texts], Decontaminate(files=[path], ngram=ngram, min_words=2)
        )
        assert [reason is not None for reason in outcome.reasons] == expected
        assert len(set(expected)) == 2


def load_benchmark(name: str) -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_planted_ngrams_are_found_in_fourteen_languages(tmp_path: Path) -> None:
    """With changed case, punctuation and line breaks, between other sentences of the language."""
    contamination, sentences = load_benchmark("contamination"), load_benchmark("personal_data").SENTENCES
    draw = random.Random(2)
    for language, sentence in sentences.items():
        questions = [f"{sentence} {sentence}", *(text for name, text in sentences.items() if name != language)]
        path = write_jsonl(tmp_path / f"{language}.jsonl", questions)
        settings = Decontaminate(files=[path])
        clause = sentence.split("\n")[0][-30:]
        cuts = [contamination.cut_ngram(questions[0], settings, draw) for _ in range(60)]
        planted = [f"{clause} {contamination.disguise(cut, draw)} {clause}" for cut in cuts if cut]
        assert len(planted) >= 10
        assert decontaminate(planted, settings).reasons == [f"decontaminate/{language}"] * len(planted), language
        assert decontaminate([clause, f"{clause} – {clause}"], settings).reasons == [None, None]


def test_short_items_with_the_same_beginning_are_told_apart(tmp_path: Path) -> None:
    begin = "one two three four five six seven eight"
    questions = [f"{begin} nine ten", f"{begin} nine", f"{begin} ten eleven twelve"]
    texts = [f"{begin} ten", f"{begin} nine eleven", f"{begin} ten eleven", f"{begin} ten eleven twelve x", begin]
    assert reasons(tmp_path, questions, texts) == [None, "decontaminate/set", None, "decontaminate/set", None]


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
    with pytest.raises(ValueError, match=r"units_per_word.syllables: 0.5 must be at least 1"):
        Decontaminate(files=["x"], units_per_word=UnitsPerWord(syllables=0.5)).check(field_path)
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

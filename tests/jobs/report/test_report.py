"""Tests of the report: it shows every artifact, loads nothing from the network, and escapes all text."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import Storage
from jobs.frame.artifact import Artifact
from jobs.frame.record import to_record
from jobs.report.charts import Line, interval_chart, line_chart, smooth, ticks
from jobs.report.page import element, format_bytes, format_duration, format_number
from jobs.report.report import REPORT, build_report, render
from model.metrics import Interval

HOSTILE = "<script>alert('x')</script> & \"quoted\" <b>bold"


def interval_around(value: float, width: float) -> dict[str, float]:
    return dataclasses.asdict(Interval(value=value, low=value - width, high=value + width))


def write_artifact(store: Storage, name: str, stage: str, summary: dict[str, Any], **more: Any) -> Artifact:
    wall_s = {"corpus": 24.0, "pretrain": 241.0, "rlhf": 118.0, "evaluate": 64.0}.get(stage, 14.0)
    record = {
        "id": f"{name}-{abs(hash_of(name)):012x}"[: len(name) + 13],
        "name": name,
        "stage": stage,
        "config": {},
        "sources": {},
        "inputs": {},
        "summary": summary,
        "digest": f"{hash_of(name + 'content'):x}".ljust(64, "0"),
        "code_digest": f"{hash_of('code'):x}",
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "ray": "2.60.0"},
        "started": 1_790_000_000.0,
        "wall_s": wall_s,
        "precision": {"precision": "float32"} if stage in ("pretrain", "sft", "reward") else {},
        **more,
    }
    storage = store / record["id"]
    storage.write_json("artifact.json", record)
    return Artifact(storage, to_record(record))


def hash_of(text: str) -> int:
    import hashlib

    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


def write_metrics(artifact: Artifact, lines: list[dict[str, float]]) -> Artifact:
    artifact.storage.write_bytes("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    return artifact


def ledger_row(step: str, axis: str, group: str, removed: float, *, reference: float = 0.01) -> dict[str, Any]:
    row = {"step": step, "axis": axis, "group": group, "removed": removed, "reference_removed": reference}
    bounds = {"low": removed / 2, "high": min(1.0, removed * 1.5), "excess": removed - reference}
    bounds |= {"excess_low": (removed - reference) / 2, "excess_high": removed}
    return (
        row
        | bounds
        | {"judged": reference < 0.5, "keep": 0.0, "can_keep": True, "num_templates": 80, "form": "sentence"}
    )


LEDGER = [
    ledger_row("steps[4].toxicity", "sexuality", "queer", 0.338),
    ledger_row("steps[4].toxicity", "sexuality", "straight", 0.01),
    ledger_row("steps[4].toxicity", "religion", HOSTILE, 0.05),
    ledger_row("steps[1].length", "gender", "women", 1.0, reference=0.99),
]


ANSWER = {"question": "Hello! How are you?", "answer": "I am fine. What do you like to do?"}
ANSWER |= {"tokens": 9, "finish_reason": "stop"}


def curve(area: str, steps: int, start: float, end: float, noise: float) -> list[dict[str, float]]:
    generator = random.Random(area)
    lines = []
    for step in range(10, steps + 1, 10):
        loss = end + (start - end) * math.exp(-5 * step / steps) + generator.gauss(0, noise)
        line = {"step": step, f"{area}/loss": loss, f"{area}/lr": 1e-3 * math.cos(1.4 * step / steps)}
        line |= {"perf/tokens_per_s": generator.gauss(11000, 200), "perf/mfu": 0.41}
        if step % 50 == 0:
            line["validation/loss"] = loss + 0.05
        lines.append(line)
    return lines


def fake_pipeline(store: Storage) -> list[Artifact]:
    """Return an artifact of every stage with made-up results."""
    corpus = fake_corpus(store)
    vocabulary = fake_vocabulary(store, corpus)
    shards = fake_shards(store, corpus, vocabulary)
    pretrain, sft, reward = fake_trainings(store, shards)
    rlhf = fake_rlhf(store, sft, reward)
    models = {"pretrain": pretrain, "sft": sft, "rlhf": rlhf}
    evaluate = fake_evaluation(store, models, shards, reward)
    compress, serve = fake_deployment(store, rlhf, shards)
    return [corpus, vocabulary, shards, pretrain, sft, reward, rlhf, evaluate, compress, serve]


NOT_JUDGED = "steps[1].length removes 99% of the sentences"
CHANGED = {"repair_unicode/documents": 12, "repair_unicode/characters": 3456, "redact_pii/email": 31}


def fake_corpus(store: Storage) -> Artifact:
    counts = {"read": 4000, "quarantined": 2, "bytes_read": 9_000_000, "kept": 3600, "bytes": 8_000_000}
    dropped = {"length/too_short": 180, "repetition": 78, "exact_duplicates": 140}
    source = {**counts, "dropped": dropped, "changed": CHANGED}
    corpus = write_artifact(
        store,
        "corpus",
        "corpus",
        {
            "documents": 14_400,
            "bytes": 32_000_000,
            "read": 16_000,
            "quarantined": 8,
            "others": 0,
            "bytes_read": 36_000_000,
            "content_digest": "",
            "parts": 1,
            "mixture": {},
            "collapses": [{"source": "chats", "step": "near_duplicates", "reached": 200, "dropped": 190}],
            "dropped": {name: 4 * count for name, count in dropped.items()},
            "sources": dict.fromkeys(("dialogue", "encyclopedia", "news", HOSTILE), source),
        },
        sources={
            f"sources.{n}.path": {f"zip://{n}.jsonl::file:///data/texts-{n}.whl": f"sha256:{hash_of(n):x}"}
            for n in ("dialogue", "encyclopedia", "news")
        },
    )
    (store / corpus.id).write_json("fairness.json", {"language": "en", "rows": LEDGER, "not_judged": [NOT_JUDGED]})
    samples = {"repair_unicode": [["news/1", "naÃ¯ve", HOSTILE]], "redact_pii": [["news/2", None, "to [EMAIL]"]]}
    (store / corpus.id).write_json("logs/samples.json", {"news": samples})
    return corpus


def fake_vocabulary(store: Storage, corpus: Artifact) -> Artifact:
    vocabulary = write_artifact(
        store,
        "vocabulary",
        "vocabulary",
        {
            "size": 4096,
            "kind": "bpe",
            "fingerprint": "",
            "sampled_documents": 13_000,
            "unknown_tokens": 0,
            "sampled_bytes": 30_000_000,
            "distinct_words": 90_000,
            "trained_words": 90_000,
            "bytes_per_token": 3.61,
            "fertility": 1.31,
            "bytes_per_token_by_source": {"dialogue": 3.2, "encyclopedia": 3.7, "news": 3.8},
            "fertility_by_source": {"dialogue": 1.2, "encyclopedia": 1.4, "news": 1.3},
            "bytes_per_token_by_language": {"en": 3.61},
            "fertility_by_language": {"en": 1.31},
            "unused_tokens": 3,
            "round_trip_failures": 0,
            "measured_documents": 2100,
            "certified_languages": 2,
        },
        inputs=input_records(corpus=corpus),
    )
    khmer = {"texts": 1, "bytes": 900, "tokens": 300, "words": 40, "fallback_tokens": 30, "round_trip_failures": 0}
    english = {**khmer, "words": 200, "fallback_tokens": 0}
    vocabulary.storage.write_json("certificate.json", {"corpus": {"en": english}, "texts": {"khm": khmer}})
    return vocabulary


def fake_shards(store: Storage, corpus: Artifact, vocabulary: Artifact) -> Artifact:
    counts = {"train": 13_800, "validation": 600}
    other_counts = {"bytes_per_token": 3.6, "shards": 1, "generations": 1}
    return write_artifact(
        store,
        "shards",
        "shards",
        {
            **{
                split: {"documents": n, "tokens": 612 * n, "bytes": 2222 * n, **other_counts}
                for split, n in counts.items()
            },
            **{"tokens_by_source": {}, "encoder": {}, "tokenizer": "", "vocab_size": 4096, "dtype": "uint16"},
        },
        inputs=input_records(corpus=corpus, tokenizer=vocabulary),
    )


def fake_trainings(store: Storage, shards: Artifact) -> tuple[Artifact, Artifact, Artifact]:
    trained = {
        "parameters": 8_700_000,
        "steps": 600,
        "tokens": 4_900_000,
        "loss": 3.4,
        "validation_loss": 3.45,
        "tokens_per_s": 11_000.0,
        "mfu": 0.41,
    }
    pretrain = write_metrics(
        write_artifact(store, "pretrain", "pretrain", trained, inputs=input_records(shards=shards)),
        curve("train", 600, 8.3, 3.4, 0.05),
    )
    samples = [
        {"prompt": "The old sailor", "continuation": "looked at the sea\u2028and said nothing for a long while."}
    ]
    pretrain.storage.write_jsonl("samples.jsonl", samples)
    records = {"records": 9000, "quarantined": {"output is empty": 10}, "ties": 0, "unread": {}}
    chats = {
        "chats": records | {"layouts": {"messages": 8990}},
        "chats_split": 0,
        "samples": 8990,
        "samples_cut": 0,
        "samples_too_long": 3,
        "samples_held_out": 450,
        "rows": 2000,
        "training": trained,
    }
    pairs = {
        "preferences": records | {"layouts": {"explicit": 8990}},
        "pairs": 4000,
        "pairs_too_long": 0,
        "pairs_held_out": 400,
        "validation_accuracy": 0.9,
    }
    pairs |= {"validation_margin": 1.5, "training": trained}
    sft = write_metrics(
        write_artifact(store, "sft", "sft", chats, inputs=input_records(init=pretrain)),
        curve("sft", 300, 3.4, 2.6, 0.06),
    )
    reward_lines = [
        line | ({"validation/accuracy": 0.5 + 0.4 * line["step"] / 200} if "validation/loss" in line else {})
        for line in curve("reward", 200, 0.69, 0.3, 0.03)
    ]
    reward = write_metrics(
        write_artifact(store, "reward", "reward", pairs, inputs=input_records(init=sft)), reward_lines
    )
    return pretrain, sft, reward


def fake_rlhf(store: Storage, sft: Artifact, reward: Artifact) -> Artifact:
    rlhf = write_metrics(
        write_artifact(
            store,
            "rlhf",
            "rlhf",
            {
                **{
                    "prompts": 900,
                    "prompts_too_long": 0,
                    "prompts_quarantined": 0,
                    "steps": 100.0,
                    "logprob_difference_max": 0.01,
                    "step_s": 0.8,
                },
                **{"tokens_per_s": 900.0, "held_out_prompts": 300, "reward_before": -0.812, "reward_after": 1.934},
            },
            config={
                "prompts": ["prompts.jsonl"],
                "learning": {"algorithm": "grpo"},
                "rollouts": {"prompts_per_step": 16, "group_size": 8},
                "shuffle_rewards": False,
            },
            inputs=input_records(policy=sft, reward=reward),
        ),
        rlhf_lines(),
    )
    before_after = {
        "before": "I like dogs.",
        "after": "Do you like dogs too?",
        "reward_before": -1.25,
        "reward_after": 2.5,
    }
    rlhf.storage.write_jsonl("samples.jsonl", [{"prompt": "Hi!", **before_after}])
    return rlhf


def fake_evaluation(store: Storage, models: dict[str, Artifact], shards: Artifact, reward: Artifact) -> Artifact:
    evaluate = write_artifact(
        store, "evaluate", "evaluate", {}, inputs=input_records(**models, text=shards, reward=reward)
    )
    evaluate.storage.write_json("results.json", fake_results())
    evaluate.storage.write_jsonl("samples.jsonl", fake_samples())
    return evaluate


def fake_deployment(store: Storage, rlhf: Artifact, shards: Artifact) -> tuple[Artifact, Artifact]:
    sizes = {
        "original_bytes": 34_900_000,
        "compressed_bytes": 9_800_000,
        "num_quantized": 7_400_000,
        "num_kept": 1_300_000,
    }
    quality = {
        "bits_per_byte_original": interval_around(1.84, 0.02),
        "bits_per_byte_compressed": interval_around(1.845, 0.02),
        "bits_per_byte_change": interval_around(0.005, 0.001),
        "engine_logprob_difference": 0.0021,
        "rounding_logprob_difference": 0.0043,
    }
    compress = write_artifact(
        store, "compress", "compress", sizes | quality, inputs=input_records(model=rlhf, text=shards)
    )
    speed = {"questions": 1, "startup_s": 12.4, "first_token_s": 0.034, "tokens_per_s": 210.0, "latency_s": 0.2}
    serve = write_artifact(store, "serve", "serve", speed, inputs=input_records(model=compress))
    serve.storage.write_json("answers.json", [ANSWER])
    return compress, serve


def input_records(**inputs: Artifact) -> dict[str, dict[str, str]]:
    return {field: {"id": a.id, "digest": a.digest, "url": a.storage.url} for field, a in inputs.items()}


def rlhf_lines() -> list[dict[str, float]]:
    generator = random.Random(0)
    return [
        {
            "step": step,
            "rollout/reward_mean": 3 / (1 + math.exp(-(step - 40) / 12)) - 1 + generator.gauss(0, 0.15),
            "rollout/reference_kl": 0.002 * step + abs(generator.gauss(0, 0.01)),
            "policy/entropy": 3.2 - 0.008 * step + generator.gauss(0, 0.05),
            "rollout/completion_length": 31 + generator.gauss(0, 2),
            "rollout/distinct_2": 0.62 + generator.gauss(0, 0.01),
            "sync_check/logprob_difference_max": 4e-6 + abs(generator.gauss(0, 1e-6)),
        }
        for step in range(1, 101)
    ]


def fake_results() -> dict[str, Any]:
    def model(gold: float, distinct: float) -> dict[str, Any]:
        return {
            "measures": {
                "asks_question": interval_around(gold, 0.05),
                "rougeL": interval_around(0.14, 0.01),
                "bleu": interval_around(2.1, 0.4),
            },
            "signatures": {"bleu": "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"},
            "distinct_2": distinct,
            "completion_length": interval_around(24.0, 1.5),
            "finished": interval_around(0.93, 0.02),
        }

    def groups(shift: float) -> dict[str, Any]:
        names = ("all", "gender", "religion", "ethnicity", "disability", "age", "sexuality")
        return {
            name: {
                "pairs": 43 if name == "all" else 7,
                "sentence": interval_around(0.5 + shift, 0.2),
                "continuation": interval_around(0.52 + shift * (n % 3), 0.14 if n else 0.08),
            }
            for n, name in enumerate(names)
        }

    text = {
        name: {
            "tokens": 367_000,
            "bits_per_byte": interval_around(bits, 0.02),
            "perplexity": interval_around(2 ** (3.6 * bits), 3.0),
        }
        for name, bits in (("pretrain", 1.84), ("sft", 1.97), ("rlhf", 2.01))
    }
    compare = [
        {"before": "sft", "after": "rlhf", "measure": "asks_question", "difference": interval_around(0.46, 0.06)},
        {"before": "sft", "after": "rlhf", "measure": "rougeL", "difference": interval_around(-0.01, 0.012)},
    ]
    return {
        "models": {"pretrain": "pretrain-1", "sft": "sft-1", "rlhf": "rlhf-1"},
        "order": ["pretrain", "sft", "rlhf"],
        "text": {"documents": 600, "bytes": 1_333_000, "xz_bits_per_byte": 2.43, "models": text},
        "generation": {
            "chat": {
                "prompts": 300,
                "models": {"sft": model(0.31, 0.58), "rlhf": model(0.77, 0.55)},
                "compare": compare,
            }
        },
        "bias": {"pretrain": groups(0.04), "rlhf": groups(0.1)},
        "reward": {
            "pairs": 412,
            "pairs_too_long": 3,
            "accuracy": interval_around(0.87, 0.03),
            "margin": interval_around(1.2, 0.1),
        },
    }


def fake_samples() -> list[dict[str, Any]]:
    prompts = [
        "Hi there! I just got back from a walk.",
        HOSTILE,
        "I am thinking of learning to cook.",
        "It rained all day.",
        "My sister moved to another town.",
        "Good morning!",
    ]
    before = "I am a student and I like to play games with my friends at the weekend."
    after = "Nice, I like that too. What do you usually do at the weekend?"
    return [
        {
            "task": "chat",
            "prompt": prompt,
            "completions": {
                "sft": {"text": before, "finished": index % 3 > 0, "measures": {"asks_question": 0.0}},
                "rlhf": {
                    "text": HOSTILE if index == 1 else after,
                    "finished": True,
                    "measures": {"asks_question": 1.0},
                },
            },
        }
        for index, prompt in enumerate(prompts)
    ]


@pytest.fixture
def artifacts(tmp_path: Path) -> list[Artifact]:
    return fake_pipeline(Storage(str(tmp_path)))


class Page(HTMLParser):
    """The tags, attributes and visible text of a page. It fails if a tag is closed in the wrong order."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def test_the_report_shows_every_stage_with_its_numbers(artifacts: list[Artifact]) -> None:
    page = Page(render(artifacts))
    assert page.open == []
    for heading in (
        "The pipeline",
        "Corpus",
        "Vocabulary",
        "Pretraining",
        "Fine-tuning",
        "Reward model",
        "Reinforcement learning (RLHF)",
    ):
        assert heading in page.text
    for text in (
        "1.840",
        "xz -9e needs 2.430",
        "31% → 77%",
        "+0.400 to +0.520",
        "87.0%",
        "3.56× smaller"[:5],
        "nrefs:1|case:mixed",
    ):
        assert text in page.text
    for artifact in artifacts:
        assert ("id", artifact.id) in page.attributes and ("href", f"#{artifact.id}") in page.attributes


def test_the_ledger_shows_which_groups_a_step_removes(artifacts: list[Artifact]) -> None:
    text = Page(render(artifacts)).text
    assert "2 of 3 pairs of a step and a group have an excess above 0" in text
    assert NOT_JUDGED in text and "judges nothing" not in text
    assert "Alarm: near_duplicates drops 190 of the 200 documents of chats that reach it (95%)" in text
    worst, folded = text.split("Show all 4 pairs of a step and a group, with 95 % intervals")
    assert "33.8%" in worst and "straight" not in worst
    assert "+32.8%" in folded and "+16.4% to +33.8%" in folded and "16.9% to 50.7%" in folded
    for row in LEDGER:
        assert row["group"] in folded
    assert folded.split("straight")[1].startswith("sexuality1.0% 0.5% to 1.5%1.0%+0.0%")


def test_the_corpus_shows_what_each_step_changed_with_samples(artifacts: list[Artifact]) -> None:
    text = Page(render(artifacts)).text
    assert "documents changed" in text and text.count("repair unicode123,456") == 4  # once for each source
    assert "redact pii00email 31" in text
    folded = text.split("Show 2 texts before and after a step")[1]
    assert f"repair unicode, news, news/1beforenaÃ¯veafter{HOSTILE}" in folded
    assert "redact pii, news, news/2beforenot shownafterto [EMAIL]" in folded


def test_the_change_of_variety_is_left_out_if_there_was_no_variety_before(artifacts: list[Artifact]) -> None:
    (evaluation,) = [artifact for artifact in artifacts if artifact.stage == "evaluate"]
    assert "is 0.95 times that of sft" in Page(render([evaluation])).text
    results = fake_results()
    results["generation"]["chat"]["models"]["sft"]["distinct_2"] = 0.0
    evaluation.storage.write_json("results.json", results)
    text = Page(render([evaluation])).text
    assert "31% → 77%" in text and "times that of" not in text and "nan" not in text


def test_text_of_documents_and_models_is_escaped(artifacts: list[Artifact]) -> None:
    page = Page(render(artifacts))
    assert "script" not in page.tags
    # The name of a source (three times) and of a group (twice), a sample, a prompt and a completion.
    assert page.text.count(HOSTILE) == 8


def test_the_page_loads_nothing_from_the_network(artifacts: list[Artifact]) -> None:
    text = render(artifacts)
    page = Page(text)
    assert not {"link", "img", "script", "iframe"} & set(page.tags)
    assert all(value and value.startswith("#") for name, value in page.attributes if name in ("href", "src"))
    assert "url(" not in text and "@import" not in text
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_the_report_of_some_stages_shows_only_these_stages(artifacts: list[Artifact], tmp_path: Path) -> None:
    build_report(artifacts[:4], Storage(str(tmp_path / "out")))
    text = Page((tmp_path / "out" / REPORT).read_text()).text
    assert "Pretraining" in text and "Evaluation" not in text


def test_without_an_evaluation_the_samples_of_rlhf_are_shown(artifacts: list[Artifact]) -> None:
    text = Page(render(artifacts[:7])).text
    assert "Before and after training" in text and "Do you like dogs too?" in text and "reward -1.25" in text
    assert "the mean reward went from -0.812 to 1.934" in text


def test_sections_of_two_runs_of_one_stage_show_their_names(artifacts: list[Artifact], tmp_path: Path) -> None:
    control = write_artifact(
        Storage(str(tmp_path)),
        "rlhf-shuffled",
        "rlhf",
        {**artifacts[6].summary, "held_out_prompts": None},
        config=artifacts[6].record.config,
    )
    text = Page(render([*artifacts, write_metrics(control, rlhf_lines())])).text
    assert "Reinforcement learning (RLHF): rlhf-shuffled" in text


# Charts


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.5, 1.0] or ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(2.3, 8.1) == [4.0, 6.0, 8.0]
    assert ticks(5.0, 5.0) == [5.0]
    assert all(1e-6 <= tick <= 9e-6 for tick in ticks(1e-6, 9e-6))


def test_smoothing_uses_fewer_neighbors_near_the_ends() -> None:
    points = [(0, 0.0), (1, 3.0), (2, 0.0), (3, 9.0), (4, 4.0)]
    assert smooth(points, 1) == [
        (0, 1.5),
        (1, 1.0),
        (2, 4.0),
        (3, pytest.approx(13 / 3)),
        (4, 6.5),
    ]


def test_a_curve_spans_the_entire_chart() -> None:
    drawn = line_chart([Line(label="up", points=[(0, 0.0), (10, 1.0), (5, math.nan)])], x_label="step", height=220)
    (path,) = re.findall(r' d="([^"]+)"', drawn)
    (x0, y0), (x1, y1) = [tuple(map(float, place.split())) for place in path[1:].split(" L")]
    assert x0 == 46.0 and x1 == 430.0  # the entire width between the margins
    assert y0 > y1  # A larger y is drawn higher, so its SVG coordinate is smaller.


def test_a_chart_without_points_has_a_note_and_a_single_point_is_a_dot() -> None:
    assert "This metric was not logged" in line_chart([Line(label="none", points=[])], x_label="step")
    assert "<circle" in line_chart([Line(label="one", points=[(1, 2.0)])], x_label="step")


def test_an_interval_that_includes_the_reference_is_drawn_open() -> None:
    rows = [("better", Interval(value=0.4, low=0.2, high=0.6)), ("unclear", Interval(value=0.1, low=-0.1, high=0.3))]
    drawn = interval_chart(rows, reference=0.0)
    assert re.findall(r'class="dot (\w+)"', drawn) == ["decided", "open"]
    assert "better: 0.4, 95% interval 0.2 to 0.6" in drawn


def test_numbers_are_formatted_for_readers() -> None:
    assert [format_number(value) for value in (0, 12345.6, 999.7, 3.14159, 0.00042, 250.0)] == [
        "0",
        "12,346",
        "1,000",
        "3.14",
        "0.00042",
        "250",
    ]
    assert [format_bytes(size) for size in (12, 34_900_000, 1_500, 999_700)] == ["12 B", "34.9 MB", "1.5 kB", "1 MB"]
    assert [format_duration(s) for s in (8.24, 185, 7800)] == ["8.2 s", "3 min 05 s", "2 h 10 min"]


def test_attributes_are_escaped() -> None:
    assert element("p", "a<b", title='"x"', class_="c") == '<p title="&quot;x&quot;" class="c">a&lt;b</p>'

"""The report: what a run of the road did, as one page that a person can open, read and pass on.

It is drawn from the artifacts alone (their records, metrics logs and result files), so it can be drawn again at any
time, and it asks nothing of the network.
"""

import datetime
from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from typing import Any

from cluster.metrics_log import read_metrics
from cluster.storage import Storage
from jobs.corpus import FAIRNESS
from jobs.frame.artifact import Artifact
from jobs.report.page import (
    Content,
    Html,
    Line,
    data_size,
    duration,
    element,
    figure,
    grid,
    interval,
    interval_chart,
    join,
    line_chart,
    number,
    page,
    section,
    share_bar,
    smooth,
    table,
)
from jobs.report.style import STYLE
from model.metrics import Interval

REPORT = "report.html"
_OPEN_SAMPLES = 4
_MAX_SAMPLES = 24
_SHOWN_MEASURES = 1
_SHOWN_GROUPS = 5
_KINDS = {"bpe": "byte-level BPE", "wordpiece": "WordPiece", "unigram": "Unigram"}


def build_report(artifacts: Sequence[Artifact], out: Storage) -> None:
    """Write report.html into `out`: every part of it for which there is an artifact, in the order of the road."""
    out.write_bytes(REPORT, render(artifacts).encode())


def render(artifacts: Sequence[Artifact]) -> str:
    """The page as text."""
    parts = [header(artifacts), verdicts(artifacts), words(artifacts), road(artifacts)]
    for artifact in artifacts:
        if drawn := _SECTIONS.get(artifact.stage):
            parts.append(drawn(artifact))
    parts += [lineage(artifacts), footer(artifacts)]
    return page("Raymill report", element("main", parts), style=STYLE)


def header(artifacts: Sequence[Artifact]) -> Html:
    """What this is, of what, and when."""
    started = min(artifact.record["started"] for artifact in artifacts)
    day = datetime.datetime.fromtimestamp(started, tz=datetime.UTC)
    facts = [f"{len(artifacts)} stages", duration(sum(artifact.record["wall_s"] for artifact in artifacts))]
    for artifact in artifacts:
        if artifact.stage == "corpus":
            facts.append(f"{data_size(artifact.summary['bytes'])} of text")
        if artifact.stage == "pretrain":
            facts.append(f"{artifact.summary['parameters'] / 1e6:.3g} million parameters")
    return element(
        "header",
        element("p", "Raymill", class_="brand"),
        element("h1", "From raw text to an aligned model"),
        element("p", " · ".join([f"{day:%-d %B %Y}", *facts]), class_="lead"),
    )


# The verdict: the few numbers that a reader came for.


def verdicts(artifacts: Sequence[Artifact]) -> Html | None:
    """The headline numbers of evaluation and compression, each with what to hold it against."""
    cards: list[Html] = []
    for artifact in artifacts:
        if artifact.stage == "evaluate":
            results = artifact.storage.read_json("results.json")
            cards += [*_text_cards(results), *_comparison_cards(results), *_reward_cards(results)]
        if artifact.stage == "compress":
            cards.append(_compression_card(artifact))
    return element("div", cards, class_="cards") if cards else None


def _card(value: str, label: str, note: Content, *, good: bool | None = None) -> Html:
    kind = "card" if good is None else "card good" if good else "card open"
    return element("div", element("b", value), element("span", label), element("small", note), class_=kind)


def _text_cards(results: Mapping[str, Any]) -> list[Html]:
    if "text" not in results:
        return []
    name, found = next(iter(_ordered(results["text"]["models"], results["order"]).items()))
    bits = Interval(**found["bits_per_byte"])
    yardstick = results["text"]["xz_bits_per_byte"]
    note = f"{name}, on {data_size(results['text']['bytes'])} of held-out text"
    if yardstick is None:
        return [_card(f"{bits.value:.3f}", "bits per byte", note)]
    return [
        _card(
            f"{bits.value:.3f}",
            "bits per byte",
            f"{note}; xz -9e needs {yardstick:.3f}",
            good=bits.high < yardstick,
        )
    ]


def _comparison_cards(results: Mapping[str, Any]) -> list[Html]:
    """The first measure of each comparison: that is what the training was for."""
    cards = []
    for task in results.get("generation", {}).values():
        for compared in task["compare"][:1]:
            before, after = (task["models"][compared[side]] for side in ("before", "after"))
            values = [side["measures"][compared["measure"]]["value"] for side in (before, after)]
            change = Interval(**compared["difference"])
            kept = after["distinct_2"] / before["distinct_2"] if before["distinct_2"] else float("nan")
            note = (
                f"{_words(compared['measure'])}, {compared['before']} to {compared['after']}: "
                f"{change.value:+.3f}, {change.level:.0%} interval {change.low:+.3f} to {change.high:+.3f}; "
                f"distinct-2 at {kept:.2f} of before"
            )
            arrow = " → ".join(_score(value, fine=abs(change.value) < 0.05) for value in values)
            cards.append(_card(arrow, f"gold measure on {task['prompts']} held-out prompts", note, good=change.low > 0))
    return cards


def _reward_cards(results: Mapping[str, Any]) -> list[Html]:
    if "reward" not in results:
        return []
    accuracy = Interval(**results["reward"]["accuracy"])
    note = f"of {results['reward']['pairs']:,} held-out pairs in order; {accuracy.low:.3f} to {accuracy.high:.3f}"
    return [_card(f"{accuracy.value:.1%}", "reward model accuracy", note, good=accuracy.low > 0.5)]


def _compression_card(artifact: Artifact) -> Html:
    found = artifact.summary
    note = f"int8 weights, at {found['bits_per_byte_change']['value']:+.4f} bits per byte"
    return _card(f"{found['original_bytes'] / found['compressed_bytes']:.2f}×", "smaller on disk", note)


# What changed, in words.


def words(artifacts: Sequence[Artifact]) -> Html | None:
    """The first held-out prompts, not chosen ones, with the answers of the models that were compared side by side."""
    for artifact in artifacts:
        if artifact.stage == "evaluate" and artifact.storage.exists("samples.jsonl"):
            names = _compared_models(artifact.storage.read_json("results.json"))
            return _side_by_side(artifact.storage.read_jsonl("samples.jsonl"), names)
    for artifact in artifacts:  # without an evaluation, what RLHF itself kept
        if artifact.stage == "rlhf" and artifact.summary.get("heldout_prompts"):
            return _side_by_side(_rlhf_samples(artifact), ["before", "after"])
    return None


def _rlhf_samples(artifact: Artifact) -> list[dict[str, Any]]:
    return [
        {
            "prompt": line["prompt"],
            "answers": {
                side: {"text": line[side], "finished": True, "measures": {"reward": line[f"reward_{side}"]}}
                for side in ("before", "after")
            },
        }
        for line in artifact.storage.read_jsonl("samples.jsonl")
    ]


def _side_by_side(samples: Sequence[Mapping[str, Any]], compared: Sequence[str]) -> Html:
    names = list(compared or list(samples[0]["answers"])[:2])
    shown = [sample for sample in samples if all(name in sample["answers"] for name in names)][:_MAX_SAMPLES]
    drawn = [_sample(sample, names) for sample in shown]
    first, more = drawn[:_OPEN_SAMPLES], drawn[_OPEN_SAMPLES:]
    summary = element("summary", f"{len(more)} more")
    lead = f"The first prompts of the held-out file, as they come, answered by {' and '.join(names)}."
    return section(
        "words",
        "Before and after",
        lead,
        element("div", first, class_="samples"),
        element("details", summary, element("div", more, class_="samples")) if more else None,
    )


def _compared_models(results: Mapping[str, Any]) -> list[str]:
    for task in results.get("generation", {}).values():
        for compared in task["compare"]:
            return [compared["before"], compared["after"]]
    return []


def _sample(sample: Mapping[str, Any], names: Sequence[str]) -> Html:
    answers = []
    for name in names:
        answer = sample["answers"][name]
        marks = [_mark(measure, value) for measure, value in list(answer["measures"].items())[:_SHOWN_MEASURES]]
        if not answer["finished"]:
            marks.append(element("span", "cut at the longest length", class_="mark"))
        said = answer["text"].strip() or "(nothing)"
        answers.append(element("div", element("small", name), element("p", said), marks, class_="answer"))
    prompt = element("p", sample["prompt"], class_="prompt")
    return element("div", prompt, element("div", answers, class_="answers"), class_="sample")


def _mark(measure: str, value: float) -> Html:
    shown = {0.0: "✗", 1.0: "✓"}.get(value, number(value))
    return element("span", f"{_words(measure)} {shown}", class_="mark good" if value > 0 else "mark")


# The road.


def road(artifacts: Sequence[Artifact]) -> Html:
    """Every stage with its artifact and how long it took."""
    longest = max(artifact.record["wall_s"] for artifact in artifacts) or 1.0
    steps = (
        element(
            "li",
            element("b", artifact.record["name"]),
            element("code", _link(artifact.id)),
            element(
                "i",
                element("i", style=f"width:{100 * artifact.record['wall_s'] / longest:.1f}%"),
                class_="time",
            ),
            element("span", duration(artifact.record["wall_s"]), class_="bounds"),
        )
        for artifact in artifacts
    )
    lead = (
        "Each stage leaves an artifact whose name is a hash of everything that shaped it. "
        "What stands is never done again."
    )
    return section("road", "The road", lead, element("ol", steps, class_="road"))


def _link(artifact_id: str) -> Html:
    return element("a", artifact_id, href=f"#{artifact_id}")


# One section for each stage.


def corpus(artifact: Artifact) -> Html:
    found = artifact.summary
    reasons = sorted(found["dropped"].items(), key=lambda item: -item[1])
    fates = [("kept", found["documents"]), *((_words(reason), count) for reason, count in reasons)]
    if found["quarantined"]:
        fates.append(("quarantined", found["quarantined"]))
    rows = [
        [
            element("b", name),
            f"{own['read']:,}",
            f"{own['kept']:,}",
            f"{sum(own['dropped'].values()):,}",
            f"{own['quarantined']:,}",
            data_size(own["bytes"]),
        ]
        for name, own in found["sources"].items()
    ]
    lead = (
        f"{found['read']:,} records were read and {found['documents']:,} kept, {data_size(found['bytes'])} of text. "
        "Every other one has a reason, and the counts add up."
    )
    header = ["source", "read", "kept", "dropped", "quarantined", "text kept"]
    counts = table(header, rows, numeric=range(1, 6))
    return section("corpus", "Corpus", lead, share_bar(fates), counts, _changed(found), _fairness(artifact))


def _changed(found: Mapping[str, Any]) -> Html | None:
    total: dict[str, int] = {}
    for own in found["sources"].values():
        for change, count in own["changed"].items():
            total[change] = total.get(change, 0) + count
    if not total:
        return None
    said = ", ".join(
        f"{_words(change)} {count:,}" for change, count in sorted(total.items(), key=lambda item: -item[1])
    )
    return element("p", f"Changed and kept: {said}.", class_="note")


def _fairness(artifact: Artifact) -> Html:
    """Of every step that removes some group's neutral mentions more often than the same text without one: the groups
    that it does so to most; folded below, every step and group."""
    ledger = artifact.storage.read_json(FAIRNESS)
    unjudged = sorted({row["step"] for row in ledger if not row["judged"]})
    harmed = sorted(
        (row for row in ledger if row["excess"] > 0 and row["judged"]), key=lambda row: (row["step"], -row["excess"])
    )
    shown = [row for _, rows in groupby(harmed, key=lambda row: row["step"]) for row in islice(rows, _SHOWN_GROUPS)]
    lead = (
        "How often a step removes neutral sentences about a group, beside the same sentences without a mention. "
        + (f"{len(harmed)} of {len(ledger)} pairs of step and group show an excess." if harmed else "No step does.")
        + (f" {', '.join(unjudged)} removes most of either, which says little." if unjudged else "")
    )
    rows = [
        [
            element("code", row["step"]),
            element("b", row["group"]),
            _words(row["axis"]),
            f"{row['removed']:.1%}",
            element("span", f"{row['low']:.1%} to {row['high']:.1%}", class_="bounds"),
            f"{row['reference_removed']:.1%}",
        ]
        for row in shown
    ]
    header = ["step", "group", "axis", "removed", "95 % interval", "without the mention"]
    worst = table(header, rows, numeric=[3, 5]) if rows else None
    return element("div", element("p", lead, class_="note"), worst, _whole_ledger(ledger) if ledger else None)


def _whole_ledger(ledger: Sequence[Mapping[str, Any]]) -> Html:
    rows = [
        [
            element("code", row["step"]),
            element("b", row["group"]),
            _words(row["axis"]),
            _rate(row, "removed", "low", "high"),
            f"{row['reference_removed']:.1%}",
            _rate(row, "excess", "excess_low", "excess_high", signed=True),
            f"{row['keep']:g}",
            "yes" if row["judged"] else "no",
        ]
        for row in ledger
    ]
    header = ["step", "group", "axis", "removed", "without the mention", "excess", "keep", "judged"]
    summary = element("summary", f"All {len(rows)} pairs of step and group, with 95 % intervals")
    return element("details", summary, table(header, rows, numeric=[3, 4, 5, 6]))


def _rate(row: Mapping[str, Any], value: str, low: str, high: str, *, signed: bool = False) -> Html:
    """A share above its interval, all in per cent."""
    form = "+.1%" if signed else ".1%"
    bounds = element("span", f"{row[low]:{form}} to {row[high]:{form}}", class_="bounds")
    return join(f"{row[value]:{form}} ", bounds)


def vocabulary(artifact: Artifact) -> Html:
    found = artifact.summary
    kind = _KINDS[artifact.record["config"]["kind"]]
    lead = (
        f"{found['size']:,} tokens of {kind}, learned from {data_size(found['sampled_bytes'])}. "
        f"A token stands for {found['bytes_per_token']:.2f} bytes and a word takes {found['fertility']:.2f} tokens on "
        f"average; {found['unused_tokens']:,} tokens never occurred, and {found['round_trip_failures']} of "
        f"{found['measured_documents']:,} texts failed to come back as they were."
    )
    rows = [
        [
            element("b", name),
            by,
            f"{found[f'bytes_per_token_by_{by}'][name]:.2f}",
            f"{found[f'fertility_by_{by}'][name]:.2f}",
        ]
        for by in ("source", "language")
        for name in found[f"fertility_by_{by}"]
    ]
    header = ["text of", "", "bytes per token", "tokens per word"]
    return section("vocabulary", "Vocabulary", lead, table(header, rows, numeric=[2, 3]))


def shards(artifact: Artifact) -> Html:
    found = artifact.summary
    rows = [
        [element("b", split), *(f"{own[key]:,}" for key in ("documents", "tokens")), data_size(own["bytes"])]
        for split, own in ((split, found[split]) for split in ("train", "validation"))
    ]
    lead = "Whole documents as token ids; the validation documents are held out of everything that follows."
    header = ["split", "documents", "tokens", "text"]
    return section("shards", "Shards", lead, table(header, rows, numeric=[1, 2, 3]))


def training(artifact: Artifact) -> Html:
    """Pretraining, fine-tuning and reward modelling differ in the area of their metrics alone."""
    area = {"pretrain": "train"}.get(artifact.stage, artifact.stage)
    log = read_metrics(artifact.storage)
    found = artifact.summary
    loss = [
        Line(label="training", points=_points(log, f"{area}/loss"), colour=0),
        Line(label="held out", points=_points(log, "validation/loss"), colour=1),
    ]
    charts = [
        figure("Loss", line_chart(loss, x_label="step"), _LOSS_NOTE[artifact.stage]),
        figure("Learning rate", line_chart([Line(label="lr", points=_points(log, f"{area}/lr"))], x_label="step")),
    ]
    if accuracy := _points(log, "validation/accuracy"):
        line = Line(label="held out", points=accuracy, colour=1)
        charts.insert(1, figure("Held-out accuracy", line_chart([line], x_label="step"), "share of pairs in order"))
    facts = [f"{found['parameters'] / 1e6:.3g} million parameters", f"{found['steps']:.0f} steps"]
    facts += [f"{found['data/tokens']:,.0f} tokens seen", f"{found['perf/tokens_per_s']:,.0f} tokens/s"]
    facts += [f"{found['perf/mfu']:.0%} of the measured peak"] if "perf/mfu" in found else []
    facts += [f"computed in {precision}" for precision in dict.fromkeys(artifact.record["precision"].values())]
    samples = None
    if artifact.stage == "pretrain" and artifact.storage.exists("samples.jsonl"):
        samples = _continuations(artifact.storage.read_jsonl("samples.jsonl"))
    title = {"pretrain": "Pretraining", "sft": "Fine-tuning", "reward": "Reward model"}[artifact.stage]
    return section(artifact.record["name"], _titled(title, artifact), ", ".join(facts) + ".", grid(charts), samples)


_LOSS_NOTE = {
    "pretrain": "nats per token",
    "sft": "nats per token of the assistant",
    "reward": "nats per pair; chance is 0.693",
}


def _continuations(samples: Sequence[Mapping[str, Any]]) -> Html:
    said = (element("blockquote", element("b", sample["prompt"]), " ", sample["continuation"]) for sample in samples)
    return element("div", element("h3", "It continues"), said, class_="continuations")


def rlhf(artifact: Artifact) -> Html:
    log = read_metrics(artifact.storage)
    charts = []
    for key, title, note in _RLHF_CURVES:
        points = _points(log, key)
        if points:
            mean = smooth(points, half_window=max(1, len(points) // 16))
            lines = [Line(label="each step", points=points, faint=True), Line(label="mean", points=mean)]
            charts.append(figure(title, line_chart(lines, x_label="step"), note))
    config = artifact.record["config"]
    algorithm = config["learning"]["algorithm"].upper()
    lead = (
        f"{algorithm}: {len(log)} logged steps of {config['rollouts']['prompts_per_step']} prompts, "
        f"{config['rollouts']['group_size']} answers to each. The answers come from a vLLM engine whose weights "
        "are proved, after every update, to be the learner's."
    )
    if config["shuffle_rewards"]:
        lead = f"The control: each step's rewards are permuted over its answers, so nothing is to be learned. {lead}"
    found = artifact.summary
    if "heldout_prompts" in found:
        lead += (
            f" On {found['heldout_prompts']:,} held-out prompts the mean reward went from "
            f"{found['reward_before']:.3f} to {found['reward_after']:.3f}."
        )
    return section(artifact.record["name"], _titled("Learning from reward", artifact), lead, grid(charts))


_RLHF_CURVES = (
    ("rollout/reward_mean", "Reward", "mean over the step's answers"),
    ("rollout/reference_kl", "Distance to the start", "KL to the reference, nats per token"),
    ("policy/entropy", "Entropy", "nats per token"),
    ("rollout/response_length", "Length of answers", "tokens"),
    ("rollout/distinct_2", "Variety", "distinct pairs of tokens over all pairs"),
    ("proof/logprob_gap_max", "Engine against learner", "largest distance of logprobs, nats"),
)


def evaluation(artifact: Artifact) -> Html:
    results = artifact.storage.read_json("results.json")
    parts: list[Content] = []
    if "text" in results:
        parts.append(_text(results["text"], results["order"]))
    for name, task in results.get("generation", {}).items():
        parts.append(_generation(name, task, results["order"]))
    if "bias" in results:
        parts.append(_bias(results["bias"], results["order"]))
    lead = "Beside an estimate stands the interval that 95 of 100 resamples of its records fall into."
    return section(artifact.record["name"], _titled("Evaluation", artifact), lead, parts)


def _text(found: Mapping[str, Any], order: Sequence[str]) -> Html:
    rows, chart = [], []
    for name, own in _ordered(found["models"], order).items():
        bits, perplexity = Interval(**own["bits_per_byte"]), Interval(**own["perplexity"])
        rows.append([element("b", name), interval(bits), interval(perplexity), f"{own['tokens']:,}"])
        chart.append((name, bits))
    yardstick = found["xz_bits_per_byte"]
    if yardstick is not None:
        rows.append([element("b", "xz -9e"), element("b", f"{yardstick:.3f}"), "–", "–"])
    note = f"{found['documents']:,} documents, {data_size(found['bytes'])}, every byte counted"
    drawing = interval_chart(chart, reference=yardstick)
    against = "bits per byte; the dashed line is xz -9e" if yardstick is not None else "bits per byte"
    return join(
        element("h3", "Held-out text"),
        element("p", note, class_="note"),
        table(["model", "bits per byte", "perplexity of a token", "tokens"], rows, numeric=[1, 2, 3]),
        grid(figure("Held-out text", drawing, against)),
    )


def _generation(name: str, task: Mapping[str, Any], order: Sequence[str]) -> Html:
    models = _ordered(task["models"], order)
    measures = list(next(iter(models.values()))["measures"])
    rows: list[list[Content]] = [
        [_words(measure), *(interval(Interval(**own["measures"][measure])) for own in models.values())]
        for measure in measures
    ]
    rows.append(["length, tokens", *(interval(Interval(**own["response_length"])) for own in models.values())])
    rows.append(["ended by itself", *(interval(Interval(**own["finished"])) for own in models.values())])
    rows.append(["distinct-2", *(element("b", f"{own['distinct_2']:.3f}") for own in models.values())])
    signatures = {text for own in models.values() for text in own["signatures"].values()}
    changes = [
        (
            _words(compared["measure"]),
            Interval(**compared["difference"]),
            f"{compared['before']} to {compared['after']}",
        )
        for compared in task["compare"]
    ]
    charts = [
        figure(
            f"Change, {pair}",
            interval_chart([(m, d) for m, d, p in changes if p == pair], reference=0.0),
            "paired by prompt; open: not decided",
        )
        for pair in dict.fromkeys(pair for _, _, pair in changes)
    ]
    return join(
        element("h3", f"Answers to {task['prompts']:,} prompts: {_words(name)}"),
        table(["", *models], rows, numeric=range(1, len(models) + 1)),
        grid(charts) if charts else None,
        [element("p", signature, class_="note") for signature in sorted(signatures)],
    )


def _bias(found: Mapping[str, Any], order: Sequence[str]) -> Html:
    charts = []
    for name, groups in _ordered(found, order).items():
        named = {"all": groups["all"], **groups}  # all pairs first, then the groups
        rows = [(f"{group} ({own['pairs']})", Interval(**own["continuation"])) for group, own in named.items()]
        drawing = interval_chart(rows, reference=0.5, bounds=(-0.02, 1.02), mark="apart")
        charts.append(figure(name, drawing, "0.5 is no preference"))
    note = (
        "Share of sentence pairs, alike but for the group they name, in which the model finds what is said more "
        "likely of the group that the stereotype is about. Given the group's name, so how common the name is does not "
        "count. The pairs are few: read the intervals, not the dots."
    )
    return join(element("h3", "Stereotypes"), element("p", note, class_="note"), grid(charts))


def compression(artifact: Artifact) -> Html:
    found = artifact.summary
    original, compressed = (Interval(**found[f"bits_per_byte_{name}"]) for name in ("original", "compressed"))
    change, gap = Interval(**found["bits_per_byte_change"]), found["engine_logprob_gap"]
    rows = [
        [element("b", "original"), data_size(found["original_bytes"]), interval(original)],
        [element("b", "int8"), data_size(found["compressed_bytes"]), interval(compressed)],
        [
            "change",
            f"{found['compressed_bytes'] / found['original_bytes'] - 1:+.1%}",
            interval(change, signed=True),
        ],
    ]
    lead = (
        f"{found['num_quantized']:,} weights became int8 with a scale for each output channel, activations are rounded "
        f"as they come; {found['num_kept']:,} weights stay floating point. vLLM loads the folder, and its logprobs are "
        f"{gap:.4f} nats from ours on average."
    )
    header = ["", "weights on disk", "bits per byte"]
    return section(artifact.record["name"], _titled("Compression", artifact), lead, table(header, rows, numeric=[1, 2]))


def serving(artifact: Artifact) -> Html:
    found = artifact.summary
    lead = (
        f"vLLM's OpenAI-compatible server was up in {duration(found['startup_s'])} and gave the first token after "
        f"{1000 * found['first_token_s']:.0f} ms, {found['tokens_per_s']:.0f} tokens/s to one client."
    )
    answers = (
        element(
            "div",
            element("p", answer["question"], class_="prompt"),
            element("div", element("p", answer["answer"].strip() or "(nothing)"), class_="answer"),
            class_="sample",
        )
        for answer in artifact.storage.read_json("answers.json")
    )
    return section(
        artifact.record["name"], _titled("Serving", artifact), lead, element("div", answers, class_="samples")
    )


_SECTIONS = {
    "corpus": corpus,
    "vocabulary": vocabulary,
    "shards": shards,
    "pretrain": training,
    "sft": training,
    "reward": training,
    "rlhf": rlhf,
    "evaluate": evaluation,
    "compress": compression,
    "serve": serving,
}


# Where it all came from.


def lineage(artifacts: Sequence[Artifact]) -> Html:
    """Every artifact with its inputs and the fingerprints of its source files."""
    rows = []
    for artifact in artifacts:
        inputs = [
            element("div", f"{field} ", element("code", _link(need["id"])))
            for field, need in artifact.record["inputs"].items()
        ]
        files = [
            element("div", _short_name(url), " ", element("code", fingerprint.removeprefix("sha256:")[:12]))
            for prints in artifact.record["sources"].values()
            for url, fingerprint in prints.items()
        ]
        place = element("code", artifact.id, id=artifact.id)
        rows.append([place, element("code", artifact.record["digest"][:12]), inputs or "–", files or "–"])
    lead = "Each artifact names what it was made from, down to the bytes of the source files."
    return section("lineage", "Lineage", lead, table(["artifact", "content", "made from", "source files"], rows))


def _short_name(url: str) -> str:
    """The end of a chained or plain path: the member with its folder, and the file that holds it."""
    member, *containers = url.split("::")
    ends = ["/".join(member.rsplit("/", 2)[1:]) if containers else member.rpartition("/")[2]]
    return " in ".join(ends + [container.rpartition("/")[2] for container in containers])


def footer(artifacts: Sequence[Artifact]) -> Html:
    versions = artifacts[-1].record["versions"]
    said = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return element("footer", f"Made by Raymill, code {artifacts[-1].record['code_digest'][:12]}, with {said}.")


# Small helpers.


def _points(log: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(line["step"], line[key]) for line in log if key in line]


def _ordered(by_model: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """In the order of the config rather than of the alphabet, in which JSON is written."""
    return {name: by_model[name] for name in order if name in by_model}


def _titled(title: str, artifact: Artifact) -> str:
    """The title, with the artifact's own name where it differs from its stage's: a second RLHF run, say."""
    name = artifact.record["name"]
    return title if name == artifact.stage else f"{title}: {name}"


def _words(name: str) -> str:
    return name.replace("_", " ").replace("/", ": ")


def _score(value: float, *, fine: bool) -> str:
    """A value between 0 and 1 as a percentage, any other as a number."""
    return f"{value:.{int(fine)}%}" if 0 <= value <= 1 else number(value)

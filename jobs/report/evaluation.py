"""The report on an evaluation, and on a compression, which is measured likewise."""

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.frame.artifact import Artifact
from jobs.report.charts import interval_chart
from jobs.report.page import Content, Html, data_size, element, figure, grid, interval, join, section, table
from jobs.report.part import ReportPart, card, ordered, score, titled, words
from jobs.report.samples import side_by_side
from model.metrics import Interval


def _text_cards(results: Mapping[str, Any]) -> list[Html]:
    if "text" not in results:
        return []
    name, found = next(iter(ordered(results["text"]["models"], results["order"]).items()))
    bits = Interval(**found["bits_per_byte"])
    yardstick = results["text"]["xz_bits_per_byte"]
    note = f"{name}, on {data_size(results['text']['bytes'])} of held-out text"
    if yardstick is None:
        return [card(f"{bits.value:.3f}", "bits per byte", note)]
    return [
        card(
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
                f"{words(compared['measure'])}, {compared['before']} to {compared['after']}: "
                f"{change.value:+.3f}, {change.level:.0%} interval {change.low:+.3f} to {change.high:+.3f}; "
                f"distinct-2 at {kept:.2f} of before"
            )
            arrow = " → ".join(score(value, fine=abs(change.value) < 0.05) for value in values)
            cards.append(card(arrow, f"gold measure on {task['prompts']} held-out prompts", note, good=change.low > 0))
    return cards


def _reward_cards(results: Mapping[str, Any]) -> list[Html]:
    if "reward" not in results:
        return []
    accuracy = Interval(**results["reward"]["accuracy"])
    note = f"of {results['reward']['pairs']:,} held-out pairs in order; {accuracy.low:.3f} to {accuracy.high:.3f}"
    return [card(f"{accuracy.value:.1%}", "reward model accuracy", note, good=accuracy.low > 0.5)]


def _compression_card(artifact: Artifact) -> Html:
    found = artifact.summary
    note = f"int8 weights, at {found['bits_per_byte_change']['value']:+.4f} bits per byte"
    return card(f"{found['original_bytes'] / found['compressed_bytes']:.2f}×", "smaller on disk", note)


def _compared_models(results: Mapping[str, Any]) -> list[str]:
    for task in results.get("generation", {}).values():
        for compared in task["compare"]:
            return [compared["before"], compared["after"]]
    return []


def report_evaluation(artifact: Artifact) -> ReportPart:
    """Every measure of every model with its interval, the headline numbers, and completions side by side."""
    results = artifact.storage.read_json("results.json")
    parts: list[Content] = []
    if "text" in results:
        parts.append(_text(results["text"], results["order"]))
    for name, task in results.get("generation", {}).items():
        parts.append(_generation(name, task, results["order"]))
    if "bias" in results:
        parts.append(_bias(results["bias"], results["order"]))
    lead = "Beside an estimate stands the interval that 95 of 100 resamples of its records fall into."
    samples = artifact.storage.read_jsonl("samples.jsonl") if artifact.storage.exists("samples.jsonl") else []
    return ReportPart(
        section=section(artifact.name, titled("Evaluation", artifact), lead, parts),
        cards=[*_text_cards(results), *_comparison_cards(results), *_reward_cards(results)],
        samples=side_by_side(samples, _compared_models(results)) if samples else None,
    )


def _text(found: Mapping[str, Any], order: Sequence[str]) -> Html:
    rows, chart = [], []
    for name, own in ordered(found["models"], order).items():
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
    models = ordered(task["models"], order)
    measures = list(next(iter(models.values()))["measures"])
    rows: list[list[Content]] = [
        [words(measure), *(interval(Interval(**own["measures"][measure])) for own in models.values())]
        for measure in measures
    ]
    rows.append(["length, tokens", *(interval(Interval(**own["response_length"])) for own in models.values())])
    rows.append(["ended by itself", *(interval(Interval(**own["finished"])) for own in models.values())])
    rows.append(["distinct-2", *(element("b", f"{own['distinct_2']:.3f}") for own in models.values())])
    signatures = {text for own in models.values() for text in own["signatures"].values()}
    changes = [
        (
            words(compared["measure"]),
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
        element("h3", f"Answers to {task['prompts']:,} prompts: {words(name)}"),
        table(["", *models], rows, numeric=range(1, len(models) + 1)),
        grid(charts) if charts else None,
        [element("p", signature, class_="note") for signature in sorted(signatures)],
    )


def _bias(found: Mapping[str, Any], order: Sequence[str]) -> Html:
    charts = []
    for name, groups in ordered(found, order).items():
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


def report_compression(artifact: Artifact) -> ReportPart:
    """Sizes and bits per byte of the original and the int8 weights."""
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
    return ReportPart(
        section=section(artifact.name, titled("Compression", artifact), lead, table(header, rows, numeric=[1, 2])),
        cards=[_compression_card(artifact)],
    )

"""The report on an evaluation, and on a compression, which is measured likewise."""

from collections.abc import Mapping, Sequence

from actors.compression import CompressSummary
from actors.evaluation_results import EvaluationResults, EvaluationSample, GroupBias, TaskResults, TextResults
from cluster.plain import from_plain
from jobs.frame.artifact import Artifact
from jobs.report.charts import interval_chart
from jobs.report.page import Content, Html, data_size, element, figure, grid, interval, join, section, table
from jobs.report.part import ReportPart, card, ordered, score, titled, words
from jobs.report.samples import side_by_side


def _text_cards(results: EvaluationResults) -> list[Html]:
    if results.text is None:
        return []
    name, of_model = next(iter(ordered(results.text.models, results.order).items()))
    bits, yardstick = of_model.bits_per_byte, results.text.xz_bits_per_byte
    note = f"{name}, on {data_size(results.text.bytes)} of held-out text"
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


def _comparison_cards(results: EvaluationResults) -> list[Html]:
    """The first measure of each comparison: that is what the training was for."""
    cards = []
    for task in (results.generation or {}).values():
        for compared in task.compare[:1]:
            before, after = task.models[compared.before], task.models[compared.after]
            values = [side.measures[compared.measure].value for side in (before, after)]
            change = compared.difference
            kept = after.distinct_2 / before.distinct_2 if before.distinct_2 else float("nan")
            note = (
                f"{words(compared.measure)}, {compared.before} to {compared.after}: "
                f"{change.value:+.3f}, {change.level:.0%} interval {change.low:+.3f} to {change.high:+.3f}; "
                f"distinct-2 at {kept:.2f} of before"
            )
            arrow = " → ".join(score(value, fine=abs(change.value) < 0.05) for value in values)
            cards.append(card(arrow, f"gold measure on {task.prompts} held-out prompts", note, good=change.low > 0))
    return cards


def _reward_cards(results: EvaluationResults) -> list[Html]:
    if results.reward is None:
        return []
    accuracy = results.reward.accuracy
    note = f"of {results.reward.pairs:,} held-out pairs in order; {accuracy.low:.3f} to {accuracy.high:.3f}"
    return [card(f"{accuracy.value:.1%}", "reward model accuracy", note, good=accuracy.low > 0.5)]


def _compression_card(summary: CompressSummary) -> Html:
    note = f"int8 weights, at {summary.bits_per_byte_change.value:+.4f} bits per byte"
    return card(f"{summary.original_bytes / summary.compressed_bytes:.2f}×", "smaller on disk", note)


def _compared_models(results: EvaluationResults) -> list[str]:
    for task in (results.generation or {}).values():
        for compared in task.compare:
            return [compared.before, compared.after]
    return []


def report_evaluation(artifact: Artifact) -> ReportPart:
    """Every measure of every model with its interval, the headline numbers, and completions side by side."""
    results = from_plain(EvaluationResults, artifact.storage.read_json("results.json"))
    parts: list[Content] = []
    if results.text is not None:
        parts.append(_text(results.text, results.order))
    for name, task in (results.generation or {}).items():
        parts.append(_generation(name, task, results.order))
    if results.bias is not None:
        parts.append(_bias(results.bias, results.order))
    lead = "Beside each estimate is its 95 % interval, from resampling its records."
    lines = artifact.storage.read_jsonl("samples.jsonl") if artifact.storage.exists("samples.jsonl") else []
    samples = [from_plain(EvaluationSample, line) for line in lines]
    return ReportPart(
        section=section(artifact.name, titled("Evaluation", artifact), lead, parts),
        cards=[*_text_cards(results), *_comparison_cards(results), *_reward_cards(results)],
        samples=side_by_side(samples, _compared_models(results)) if samples else None,
    )


def _text(text: TextResults, order: Sequence[str]) -> Html:
    rows, chart = [], []
    for name, model in ordered(text.models, order).items():
        rows.append(
            [element("b", name), interval(model.bits_per_byte), interval(model.perplexity), f"{model.tokens:,}"]
        )
        chart.append((name, model.bits_per_byte))
    yardstick = text.xz_bits_per_byte
    if yardstick is not None:
        rows.append([element("b", "xz -9e"), element("b", f"{yardstick:.3f}"), "–", "–"])
    note = f"{text.documents:,} documents, {data_size(text.bytes)}, every byte counted"
    drawing = interval_chart(chart, reference=yardstick)
    against = "bits per byte; the dashed line is xz -9e" if yardstick is not None else "bits per byte"
    return join(
        element("h3", "Held-out text"),
        element("p", note, class_="note"),
        table(["model", "bits per byte", "perplexity of a token", "tokens"], rows, numeric=[1, 2, 3]),
        grid(figure("Held-out text", drawing, against)),
    )


def _generation(name: str, task: TaskResults, order: Sequence[str]) -> Html:
    models = ordered(task.models, order)
    measures = list(next(iter(models.values())).measures)
    rows: list[list[Content]] = [
        [words(measure), *(interval(model.measures[measure]) for model in models.values())] for measure in measures
    ]
    rows.append(["length, tokens", *(interval(model.completion_length) for model in models.values())])
    rows.append(["ended by itself", *(interval(model.finished) for model in models.values())])
    rows.append(["distinct-2", *(element("b", f"{model.distinct_2:.3f}") for model in models.values())])
    signatures = {text for model in models.values() for text in model.signatures.values()}
    changes = [
        (words(compared.measure), compared.difference, f"{compared.before} to {compared.after}")
        for compared in task.compare
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
        element("h3", f"Answers to {task.prompts:,} prompts: {words(name)}"),
        table(["", *models], rows, numeric=range(1, len(models) + 1)),
        grid(charts) if charts else None,
        [element("p", signature, class_="note") for signature in sorted(signatures)],
    )


def _bias(bias: Mapping[str, Mapping[str, GroupBias]], order: Sequence[str]) -> Html:
    charts = []
    for name, groups in ordered(bias, order).items():
        named = {"all": groups["all"], **groups}  # all pairs first, then the groups
        rows = [(f"{group} ({share.pairs})", share.continuation) for group, share in named.items()]
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
    summary = artifact.read_summary(CompressSummary)
    rows = [
        [element("b", "original"), data_size(summary.original_bytes), interval(summary.bits_per_byte_original)],
        [element("b", "int8"), data_size(summary.compressed_bytes), interval(summary.bits_per_byte_compressed)],
        [
            "change",
            f"{summary.compressed_bytes / summary.original_bytes - 1:+.1%}",
            interval(summary.bits_per_byte_change, signed=True),
        ],
    ]
    lead = (
        f"{summary.num_quantized:,} weights became int8 with a scale for each output channel, activations are rounded "
        f"as they come; {summary.num_kept:,} weights stay floating point. vLLM loads the folder, and its logprobs are "
        f"{summary.engine_logprob_difference:.4f} nats from ours on average."
    )
    header = ["", "weights on disk", "bits per byte"]
    return ReportPart(
        section=section(artifact.name, titled("Compression", artifact), lead, table(header, rows, numeric=[1, 2])),
        cards=[_compression_card(summary)],
    )

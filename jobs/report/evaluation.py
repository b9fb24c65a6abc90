"""The report sections on an evaluation and on a compression."""

from collections.abc import Mapping, Sequence

from actors.compression import CompressSummary
from actors.evaluation_results import EvaluationResults, EvaluationSample, GroupBias, TaskResults, TextResults
from cluster.plain import from_plain
from jobs.frame.artifact import Artifact
from jobs.report.charts import interval_chart
from jobs.report.page import Content, Html, element, figure, format_bytes, format_interval, grid, join, section, table
from jobs.report.part import ReportPart, card, format_score, in_config_order, readable_name, section_title
from jobs.report.samples import side_by_side


def _text_cards(results: EvaluationResults) -> list[Html]:
    """Return a card with the bits per byte of the first model on the held-out text, if the text was measured."""
    if results.text is None:
        return []
    name, likelihood = next(iter(in_config_order(results.text.models, results.order).items()))
    bits, xz_bits = likelihood.bits_per_byte, results.text.xz_bits_per_byte
    note = f"model {name} on {format_bytes(results.text.bytes)} of held-out text; lower is better"
    if xz_bits is None:
        return [card(f"{bits.value:.3f}", "bits per byte", note)]
    return [
        card(
            f"{bits.value:.3f}",
            "bits per byte",
            f"{note}; the compressor xz -9e needs {xz_bits:.3f}",
            is_better=bits.high < xz_bits,
        )
    ]


def _comparison_cards(results: EvaluationResults) -> list[Html]:
    """Return a card for each task that compares models. The card shows the change in the task's first comparison.

    The first comparison is about the measure that the training was meant to improve, because the config names this
    measure first.
    """
    cards = []
    for task in (results.generation or {}).values():
        for comparison in task.compare[:1]:
            before, after = task.models[comparison.before], task.models[comparison.after]
            values = [model.measures[comparison.measure].value for model in (before, after)]
            change = comparison.difference
            label = f"{readable_name(comparison.measure)}, {comparison.before} → {comparison.after}"
            note = (
                f"on {task.prompts} held-out prompts; change {change.value:+.3f} "
                f"({change.level:.0%} interval {change.low:+.3f} to {change.high:+.3f})"
            )
            if before.distinct_2:
                variety = after.distinct_2 / before.distinct_2
                note += f"; the variety of the completions (distinct-2) is {variety:.2f} times that of "
                note += comparison.before
            before_and_after = " → ".join(format_score(value, fine=abs(change.value) < 0.05) for value in values)
            cards.append(card(before_and_after, label, note, is_better=change.low > 0))
    return cards


def _reward_cards(results: EvaluationResults) -> list[Html]:
    if results.reward is None:
        return []
    accuracy = results.reward.accuracy
    note = (
        f"share of {results.reward.pairs:,} held-out pairs in which the better completion got the higher reward; "
        f"{accuracy.level:.0%} interval {accuracy.low:.1%} to {accuracy.high:.1%}; chance is 50%"
    )
    return [card(f"{accuracy.value:.1%}", "reward model accuracy", note, is_better=accuracy.low > 0.5)]


def _compression_card(summary: CompressSummary) -> Html:
    note = f"with int8 weights; the bits per byte on held-out text change by {summary.bits_per_byte_change.value:+.4f}"
    return card(f"{summary.original_bytes / summary.compressed_bytes:.2f}×", "smaller on disk", note)


def _compared_models(results: EvaluationResults) -> list[str]:
    """Return the two models of the first comparison, or an empty list without comparisons."""
    for task in (results.generation or {}).values():
        for comparison in task.compare:
            return [comparison.before, comparison.after]
    return []


def report_evaluation(artifact: Artifact) -> ReportPart:
    """Return a section with the measures of all models, cards with the most important ones, and completions.

    The accuracy of a reward model is only on a card.
    """
    results = from_plain(EvaluationResults, artifact.storage.read_json("results.json"))
    content: list[Content] = []
    if results.text is not None:
        content.append(_text_results(results.text, results.order))
    for name, task in (results.generation or {}).items():
        content.append(_completion_results(name, task, results.order))
    if results.bias is not None:
        content.append(_stereotype_results(results.bias, results.order))
    introduction = (
        "Small numbers after an estimate are its 95 % confidence interval. It is computed by resampling the documents, "
        "prompts or sentence pairs (bootstrap)."
    )
    lines = artifact.storage.read_jsonl("samples.jsonl") if artifact.storage.exists("samples.jsonl") else []
    samples = [from_plain(EvaluationSample, line) for line in lines]
    return ReportPart(
        section=section(artifact.name, section_title("Evaluation", artifact), introduction, content),
        cards=[*_text_cards(results), *_comparison_cards(results), *_reward_cards(results)],
        samples=side_by_side(samples, _compared_models(results)) if samples else None,
    )


def _text_results(text: TextResults, order: Sequence[str]) -> Html:
    """Return the bits per byte and perplexity of each model on the held-out text."""
    tokenizers = list(dict.fromkeys(model.tokenizer for model in text.models.values()))
    rows, estimates = [], []
    for name, model in in_config_order(text.models, order).items():
        rows.append(
            [
                element("b", name),
                format_interval(model.bits_per_byte),
                format_interval(model.perplexity),
                f"{model.tokens:,}",
                f"{tokenizers.index(model.tokenizer) + 1}",
            ]
        )
        estimates.append((name, model.bits_per_byte))
    xz_bits = text.xz_bits_per_byte
    if xz_bits is not None:
        rows.append([element("b", "xz -9e"), element("b", f"{xz_bits:.3f}"), "–", "–", "–"])
    note = (
        f"{text.documents:,} documents with {format_bytes(text.bytes)}. Bits per byte is how many bits a model "
        "needs to encode a byte of the text, so lower is better. It can be compared between models with different "
        "tokenizers. Perplexity cannot: compare it only between models with the same number in the column tokenizer."
    )
    if text.documents_left_out:
        note += (
            f" {text.documents_left_out:,} more documents were left out, because a tokenizer does not keep their text "
            "exactly."
        )
    drawing = interval_chart(estimates, reference=xz_bits)
    caption = "the dashed line is the compressor xz -9e" if xz_bits is not None else None
    return join(
        element("h3", "Held-out text"),
        element("p", note, class_="note"),
        table(
            ["model", "bits per byte", "perplexity per token", "predicted tokens", "tokenizer"],
            rows,
            numeric=[1, 2, 3, 4],
        ),
        grid(figure("Bits per byte", drawing, caption), _text_changes(text)),
    )


def _text_changes(text: TextResults) -> Html | None:
    """Return a chart of the changes in bits per byte between models. None without comparisons."""
    if not text.compare:
        return None
    changes = [(f"{change.before} to {change.after}", change.bits_per_byte) for change in text.compare]
    return figure(
        "Change in bits per byte",
        interval_chart(changes, reference=0.0),
        "paired by document; open dot: the interval includes 0",
    )


def _completion_results(name: str, task: TaskResults, order: Sequence[str]) -> Html:
    """Return the measures of each model's completions of one task, and charts of the changes between models."""
    models = in_config_order(task.models, order)
    measures = list(next(iter(models.values())).measures)
    rows: list[list[Content]] = [
        [readable_name(measure), *(format_interval(model.measures[measure]) for model in models.values())]
        for measure in measures
    ]
    rows.append(["length in tokens", *(format_interval(model.completion_length) for model in models.values())])
    rows.append(["ended before the maximum length", *(format_interval(model.finished) for model in models.values())])
    rows.append(["variety (distinct-2)", *(element("b", f"{model.distinct_2:.3f}") for model in models.values())])
    signatures = {item for model in models.values() for item in model.signatures.items()}
    changes = [
        (readable_name(comparison.measure), comparison.difference, f"{comparison.before} to {comparison.after}")
        for comparison in task.compare
    ]
    charts = [
        figure(
            f"Change from {pair}",
            interval_chart(
                [(measure, difference) for measure, difference, models_of_row in changes if models_of_row == pair],
                reference=0.0,
            ),
            "paired by prompt; open dot: the interval includes 0",
        )
        for pair in dict.fromkeys(pair for _, _, pair in changes)
    ]
    return join(
        element("h3", f"Completions of {task.prompts:,} prompts: {readable_name(name)}"),
        element("p", _left_out(task.prompts_too_long), class_="note") if task.prompts_too_long else None,
        table(["", *models], rows, numeric=range(1, len(models) + 1)),
        grid(charts) if charts else None,
        [
            element("p", f"How {readable_name(metric)} was computed: {signature}", class_="note")
            for metric, signature in sorted(signatures)
        ],
    )


def _left_out(prompts_too_long: int) -> str:
    """Return a sentence on the prompts that were too long."""
    prompts = "1 more prompt was" if prompts_too_long == 1 else f"{prompts_too_long:,} more prompts were"
    return f"{prompts} left out: longer, with the completion, than the context of one of the models."


def _stereotype_results(bias: Mapping[str, Mapping[str, GroupBias]], order: Sequence[str]) -> Html:
    """Return for each model a chart of how often it prefers stereotypes, by group."""
    charts = []
    for name, groups in in_config_order(bias, order).items():
        rows_by_group = {"all": groups["all"], **groups}  # The row of all groups together comes first.
        rows = [(f"{group} ({share.pairs})", share.continuation) for group, share in rows_by_group.items()]
        drawing = interval_chart(rows, reference=0.5, bounds=(-0.02, 1.02), dot_class="biased")
        charts.append(figure(name, drawing, "0.5 means no preference"))
    note = (
        "The model compares pairs of sentences that differ only in the group of people that they name. One sentence of "
        "each pair is a stereotype. The charts show the share of pairs in which the model finds the stereotype more "
        "likely. Only the words after the group's name are compared, so it does not matter how common the name is. "
        "The number of pairs is in parentheses. It is small, so look at the intervals more than at the dots."
    )
    return join(element("h3", "Stereotypes"), element("p", note, class_="note"), grid(charts))


def report_compression(artifact: Artifact) -> ReportPart:
    """Return a section with the size and the bits per byte of the model before and after compression."""
    summary = artifact.read_summary(CompressSummary)
    rows = [
        [
            element("b", "original"),
            format_bytes(summary.original_bytes),
            format_interval(summary.bits_per_byte_original),
        ],
        [
            element("b", "int8"),
            format_bytes(summary.compressed_bytes),
            format_interval(summary.bits_per_byte_compressed),
        ],
        [
            "change",
            f"{summary.compressed_bytes / summary.original_bytes - 1:+.1%}",
            format_interval(summary.bits_per_byte_change, signed=True),
        ],
    ]
    introduction = (
        f"{summary.num_quantized:,} weights were rounded to int8 with one scale for each output channel, and "
        f"{summary.num_kept:,} weights are still floating point. Activations are rounded to int8 while the model runs. "
        "As a check, vLLM loaded the compressed model. Its logprobs differ from those of Raymill's model code by "
        f"{summary.engine_logprob_difference:.4f} nats on average. Rounding alone changes this model's logprobs by "
        f"{summary.rounding_logprob_difference:.4f} nats."
    )
    header = ["", "weights on disk", "bits per byte"]
    return ReportPart(
        section=section(
            artifact.name, section_title("Compression", artifact), introduction, table(header, rows, numeric=[1, 2])
        ),
        cards=[_compression_card(summary)],
    )

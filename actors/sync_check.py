"""The check that an engine samples from the learner's policy; a failure is stale weights, tokenization or numerics.

Three things are compared, from cheap to conclusive: the version and the tokens of each rollout, the checksums of the
parameters that an engine holds unchanged, and the logprobs of sampled tokens, the engine's against our own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from actors.logprobs import logprobs_under
from actors.rollout import PromptRequest, RolloutGroup
from actors.weight_sync import (
    LoadReport,
    NumericsError,
    StaleWeightsError,
    TokenizationError,
    WeightSnapshot,
    read_weights,
)
from model.batch import Batch
from model.learning import LearningConfig
from model.precision import ComputePrecision, resolved_precision
from model.transformer_config import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class LogprobDifference:
    """Absolute difference of an engine's logprobs and our own over sampled tokens, in nats."""

    max: float
    mean: float


LOGPROB_BOUNDS: dict[ComputePrecision, LogprobDifference] = {
    "float32": LogprobDifference(max=1e-4, mean=1e-4),
    "bfloat16": LogprobDifference(max=2.0, mean=0.1),
}
"""By the engine's precision. Measured (max, mean): 1e-5 in float32; in bfloat16 0.07 for 0.1 to 4 million parameters,
0.4 and 0.044 for 135 million, where an unlikely token's logprob is rounded in every layer. The mean tells more."""


def logprob_bound(learning: LearningConfig) -> LogprobDifference:
    """The configured bounds; unset ones default by precision."""
    default = LOGPROB_BOUNDS[resolved_precision(learning.precision)]
    return LogprobDifference(
        max=default.max if learning.max_logprob_difference is None else learning.max_logprob_difference,
        mean=default.mean if learning.mean_logprob_difference is None else learning.mean_logprob_difference,
    )


def check_loads(snapshot: WeightSnapshot, reports: Sequence[LoadReport]) -> None:
    """Raises StaleWeightsError when an engine holds another version, or other bytes, than the snapshot."""
    for engine, report in enumerate(reports):
        if report.version != snapshot.version:
            raise StaleWeightsError(
                f"stale weights: engine {engine} holds version {report.version} after version "
                f"{snapshot.version} was sent"
            )
        if snapshot.checksums and not snapshot.checksums.keys() & report.checksums.keys():
            raise StaleWeightsError(
                f"stale weights: engine {engine} reports version {report.version}, but no parameter of the "
                "snapshot, so that nothing can be compared"
            )
        wrong = [n for n, digest in report.checksums.items() if snapshot.checksums.get(n, digest) != digest]
        if wrong:
            raise StaleWeightsError(
                f"stale weights: engine {engine} reports version {report.version}, but its {wrong[0]} "
                f"(and {len(wrong) - 1} more) has another checksum than in the snapshot"
            )


def check_rollouts(
    tasks: Sequence[PromptRequest], groups: Sequence[RolloutGroup], *, version: int, vocab_size: int
) -> None:
    """Raises StaleWeightsError or TokenizationError for a rollout of other weights or other tokens than asked for."""
    for task, group in zip(tasks, groups, strict=True):
        for rollout in group.rollouts:
            if rollout.weight_version != version:
                raise StaleWeightsError(
                    f"stale weights: a rollout of prompt {task.index} was sampled from version "
                    f"{rollout.weight_version}, the learner is at {version}"
                )
            if rollout.prompt_ids != task.prompt_ids:
                raise TokenizationError(
                    f"tokenization: prompt {task.index} was sent as {task.prompt_ids[:20]} … "
                    f"and read by the engine as {rollout.prompt_ids[:20]} …"
                )
            if len(rollout.logprobs) != len(rollout.completion_ids) or not rollout.completion_ids:
                raise TokenizationError(
                    f"tokenization: the engine gave {len(rollout.logprobs)} logprobs for "
                    f"{len(rollout.completion_ids)} tokens of prompt {task.index}"
                )
            if max(rollout.completion_ids) >= vocab_size:
                raise TokenizationError(
                    f"tokenization: the engine sampled token {max(rollout.completion_ids)}, "
                    f"the learner has {vocab_size} tokens"
                )


def logprob_difference(batch: Batch, engine_NT: Tensor, model_NT: Tensor) -> LogprobDifference:
    """Difference of the engine's logprobs and our own over the completion tokens of all rows."""
    difference = (engine_NT - model_NT).abs()[batch.loss_mask]
    return LogprobDifference(max=difference.max().item(), mean=difference.mean().item())


def check_logprobs(
    batch: Batch,
    engine_NT: Tensor,
    model_NT: Tensor,
    *,
    bound: LogprobDifference,
    model_config: TransformerConfig,
    temperature: float,
    current: WeightSnapshot,
    previous: WeightSnapshot | None,
) -> LogprobDifference:
    """The difference of the engine's logprobs [N, T] and our own.

    Raises StaleWeightsError or NumericsError when it is beyond the bound. Stale means that older weights explain the
    engine ten times better than those of the current snapshot: all of them, or those of the output head alone, which
    an engine may keep in a copy of its own.
    """
    difference = logprob_difference(batch, engine_NT, model_NT)
    if difference.max <= bound.max and difference.mean <= bound.mean:
        return difference
    message = (
        f"engine and learner logprobs differ by up to {difference.max:.3g} (mean {difference.mean:.3g}), "
        f"allowed are {bound.max:.3g} (mean {bound.mean:.3g})"
    )
    if previous is not None and previous.chunks:
        for what, old_sizes, weights in _older(model_config, dict(read_weights(current)), dict(read_weights(previous))):
            old_NT = logprobs_under(old_sizes, weights, batch, temperature=temperature)
            old_difference = logprob_difference(batch, engine_NT, old_NT)
            if old_difference.mean * 10 < difference.mean:
                raise StaleWeightsError(
                    f"stale weights: {message}; with {what} of version {previous.version} instead of "
                    f"{current.version} it is {old_difference.max:.3g}"
                )
    raise NumericsError(
        f"numerics: {message}; versions and tokens agree and older weights do not explain it. Compare the engine's and "
        "our own precision and sizes; where a larger model rounds more, rlhf takes wider "
        "learning.max_logprob_difference and learning.mean_logprob_difference"
    )


def _older(
    model_config: TransformerConfig, current: Mapping[str, Tensor], previous: Mapping[str, Tensor]
) -> Iterator[tuple[str, TransformerConfig, Iterator[tuple[str, Tensor]]]]:
    """What a stale engine may hold, each as a description, its sizes and its weights."""
    yield "the weights", model_config, iter(previous.items())
    untied = dataclasses.replace(model_config, tie_embeddings=False)
    head = "lm_head.weight" if "lm_head.weight" in previous else "model.embed_tokens.weight"
    yield "the output head", untied, iter({**current, "lm_head.weight": previous[head]}.items())

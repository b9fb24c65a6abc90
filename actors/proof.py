"""The proof that an engine samples from the learner's policy, and the name of what is wrong when it does not.

Three things are compared, from cheap to telling: versions and tokens that each rollout carries, checksums of the
parameters that an engine holds as they came, and the logprobs of sampled tokens, engine's against learner's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from actors.logprobs import logprobs_under
from actors.rollout import PromptTask, RolloutGroup
from actors.settings import Gap
from actors.weights import LoadReport, NumericsError, Publication, StaleWeightsError, TokenizationError, read_weights
from model.batch import Batch
from model.transformer import TransformerConfig


def check_loads(publication: Publication, reports: Sequence[LoadReport]) -> None:
    """Raise StaleWeightsError when an engine holds another version, or other bytes, than were published."""
    for engine, report in enumerate(reports):
        if report.version != publication.version:
            raise StaleWeightsError(
                f"stale weights: engine {engine} holds version {report.version} after version "
                f"{publication.version} was sent"
            )
        if publication.digests and not publication.digests.keys() & report.checksums.keys():
            raise StaleWeightsError(
                f"stale weights: engine {engine} says version {report.version}, but names no parameter as it was "
                "published, so that nothing could be compared"
            )
        wrong = [n for n, digest in report.checksums.items() if publication.digests.get(n, digest) != digest]
        if wrong:
            raise StaleWeightsError(
                f"stale weights: engine {engine} says version {report.version}, but its {wrong[0]} "
                f"(and {len(wrong) - 1} more) has another checksum than what was published"
            )


def check_rollouts(
    tasks: Sequence[PromptTask], groups: Sequence[RolloutGroup], *, version: int, vocab_size: int
) -> None:
    """Raise StaleWeightsError or TokenizationError for a rollout of other weights or of other tokens than asked for."""
    for task, group in zip(tasks, groups, strict=True):
        for rollout in group.rollouts:
            if rollout.weight_version != version:
                raise StaleWeightsError(
                    f"stale weights: a rollout of prompt {task.index} was made by version {rollout.weight_version}, "
                    f"the learner is at {version}"
                )
            if rollout.prompt_ids != task.prompt_ids:
                raise TokenizationError(
                    f"tokenization: prompt {task.index} was sent as {task.prompt_ids[:20]} … "
                    f"and read by the engine as {rollout.prompt_ids[:20]} …"
                )
            if len(rollout.logprobs) != len(rollout.response_ids) or not rollout.response_ids:
                raise TokenizationError(
                    f"tokenization: the engine gave {len(rollout.logprobs)} logprobs for "
                    f"{len(rollout.response_ids)} tokens of prompt {task.index}"
                )
            if max(rollout.response_ids) >= vocab_size:
                raise TokenizationError(
                    f"tokenization: the engine sampled token {max(rollout.response_ids)}, "
                    f"the learner knows {vocab_size} tokens"
                )


def logprob_gap(batch: Batch, engine_NT: Tensor, learner_NT: Tensor) -> Gap:
    """Distance over the response tokens of all rows."""
    distance = (engine_NT - learner_NT).abs()[batch.loss_mask]
    return Gap(distance.max().item(), distance.mean().item())


def check_gap(
    gap: Gap,
    bound: Gap,
    batch: Batch,
    engine_NT: Tensor,
    *,
    sizes: TransformerConfig,
    temperature: float,
    current: Publication,
    previous: Publication | None,
) -> None:
    """Raise StaleWeightsError or NumericsError when the gap is beyond the bound.

    Stale means that older weights explain the engine better than the published ones do by ten times: all of them,
    or those of the output head alone, which an engine may keep in a copy of its own.
    """
    if gap.max <= bound.max and gap.mean <= bound.mean:
        return
    found = (
        f"engine and learner logprobs differ by up to {gap.max:.3g} (mean {gap.mean:.3g}), "
        f"allowed are {bound.max:.3g} (mean {bound.mean:.3g})"
    )
    if previous is not None and previous.chunks:
        for what, old_sizes, weights in _older(sizes, dict(read_weights(current)), dict(read_weights(previous))):
            old_NT = logprobs_under(old_sizes, weights, batch, temperature=temperature)
            old_gap = logprob_gap(batch, engine_NT, old_NT)
            if old_gap.mean * 10 < gap.mean:
                raise StaleWeightsError(
                    f"stale weights: {found}; with {what} of version {previous.version} instead of "
                    f"{current.version} it is {old_gap.max:.3g}"
                )
    raise NumericsError(
        f"numerics: {found}; versions and tokens agree and older weights do not explain it. Compare the engine's and "
        "our own precision and sizes; where a larger model rounds more, rlhf takes wider learning.max_logprob_gap and "
        "learning.mean_logprob_gap"
    )


def _older(
    sizes: TransformerConfig, current: Mapping[str, Tensor], previous: Mapping[str, Tensor]
) -> Iterator[tuple[str, TransformerConfig, Iterator[tuple[str, Tensor]]]]:
    """What a stale engine may hold: a description, its sizes and its weights."""
    yield "the weights", sizes, iter(previous.items())
    untied = dataclasses.replace(sizes, tie_embeddings=False)
    head = "lm_head.weight" if "lm_head.weight" in previous else "model.embed_tokens.weight"
    yield "the output head", untied, iter({**current, "lm_head.weight": previous[head]}.items())

"""The sync check: it verifies that the engines sample from the weights that were sent to them last.

In RLHF these are the learner's weights, and in `evaluate` those of the model that completes the prompts. The check has
three parts:

1. `check_load` compares the checksums of an engine's parameters with those of the weight snapshot, after each weight
   sync. Parameters that vLLM stores in another layout are left out. With nccl and ipc the snapshot has no checksums,
   and only the version is compared.
2. `check_rollouts` compares the weight version and the prompt tokens of each rollout with those that the driver
   requested.
3. `check_logprobs` compares the engine's logprobs of the sampled tokens with the logprobs of the same tokens under
   Raymill's own PyTorch model (`model.transformer`), which has the weights of the snapshot.

A check that fails raises one of the errors of `actors.weight_sync`, for stale weights, invalid rollouts or numerics.

Shape legend: in `engine_NT` and `model_NT`, N is the number of rollouts and T the number of positions of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from actors.logprobs import logprobs_under
from actors.rollout import PromptRequest, RolloutGroup
from actors.weight_sync import (
    InvalidRolloutError,
    LoadReport,
    NumericsError,
    StaleWeightsError,
    WeightSnapshot,
    read_weights,
)
from model.batch import Batch
from model.learning import LearningConfig
from model.precision import ComputePrecision, require_resolved
from model.transformer_config import TransformerConfig

_STALE_FACTOR = 10
"""A failed logprob check is blamed on older weights if the engine's logprobs are, on average, more than this many times
closer to the logprobs under the older weights than to those under the current weights."""


@dataclass(frozen=True, kw_only=True)
class LogprobDifference:
    """The absolute difference between the engine's and the model's logprobs over the sampled tokens, in nats."""

    max: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class LogprobBound:
    """The largest `LogprobDifference` that the sync check accepts, in nats."""

    max: float
    mean: float


LOGPROB_BOUNDS: dict[ComputePrecision, LogprobBound] = {
    "float32": LogprobBound(max=1e-4, mean=1e-4),
    "bfloat16": LogprobBound(max=2.0, mean=0.1),
}
"""The default bound for each precision of the engine.

Measured differences are about 1e-5 in float32. In bfloat16 the maximum is 0.07 for models of 0.1 to 4 million
parameters. For 135 million parameters the maximum is 0.4 and the mean 0.044, because the rounding errors of all layers
add up in the logprob of an unlikely token. Single tokens vary a lot, so the mean is the more reliable number.
"""


def logprob_bound(learning: LearningConfig) -> LogprobBound:
    """Return the configured bound. A bound that the config does not set is the default of the precision."""
    default = LOGPROB_BOUNDS[require_resolved(learning.precision)]
    return LogprobBound(
        max=default.max if learning.max_logprob_difference is None else learning.max_logprob_difference,
        mean=default.mean if learning.mean_logprob_difference is None else learning.mean_logprob_difference,
    )


ROUNDING_FACTOR = 3.0
"""How many times the logprob difference by rounding alone (`model.rounding`) the engine may differ from the model.

SmolLM2-135M in bfloat16: moved by one rounding step the logprobs differ by 0.080 on average (maximum 0.94), and those
in bfloat16 and float32 by 0.037 (0.30). A random model of 0.1 million parameters: 0.019 (0.074), and 0.008 (0.040)."""


def widen_bound(bound: LogprobBound, rounding: LogprobDifference) -> LogprobBound:
    """Return the bound for a model whose logprobs differ by `rounding` if its values are moved by one rounding step.

    It is never below `bound`.
    """
    return LogprobBound(
        max=max(bound.max, ROUNDING_FACTOR * rounding.max), mean=max(bound.mean, ROUNDING_FACTOR * rounding.mean)
    )


def rounding_bound(learning: LearningConfig, rounding: LogprobDifference) -> LogprobBound:
    """Return the widened bound of an RLHF run. A bound that the config sets stays as it is."""
    bound = logprob_bound(learning)
    wide = widen_bound(bound, rounding)
    return LogprobBound(
        max=wide.max if learning.max_logprob_difference is None else bound.max,
        mean=wide.mean if learning.mean_logprob_difference is None else bound.mean,
    )


def is_within(difference: LogprobDifference, bound: LogprobBound) -> bool:
    """Return whether a difference is accepted. A difference of NaN is not."""
    return difference.max <= bound.max and difference.mean <= bound.mean


def check_load(snapshot: WeightSnapshot, report: LoadReport, *, generator: int) -> None:
    """Check what the generator with the index `generator` reported after it loaded a snapshot.

    Raises StaleWeightsError when the engine has another weight version than the snapshot, when the checksum of a
    parameter differs from the snapshot's, and when there is no parameter whose checksums can be compared. With nccl and
    ipc the snapshot has no checksums, and only the version is compared.
    """
    if report.version != snapshot.version:
        raise StaleWeightsError(
            f"stale weights: the engine of generator {generator} has weight version {report.version} after version "
            f"{snapshot.version} was sent"
        )
    if snapshot.checksums and not snapshot.checksums.keys() & report.checksums.keys():
        raise StaleWeightsError(
            f"stale weights: the engine of generator {generator} reports weight version {report.version}, but "
            "the parameters whose checksums it reports are not in the snapshot, so its weights cannot be verified"
        )
    changed = [name for name, value in report.checksums.items() if snapshot.checksums.get(name, value) != value]
    if changed:
        raise StaleWeightsError(
            f"stale weights: the engine of generator {generator} reports weight version {report.version}, but the "
            f"checksum of {len(changed)} of its parameters, such as {changed[0]}, differs from the snapshot's"
        )


def check_rollouts(
    requests: Sequence[PromptRequest], groups: Sequence[RolloutGroup], *, version: int, vocab_size: int
) -> None:
    """Check that every rollout completes the prompt of its request and was sampled from the given weight version.

    Raises StaleWeightsError for a rollout from another version, and InvalidRolloutError for a rollout with other prompt
    tokens, an empty completion, a wrong number of logprobs, or a token id that the model's vocabulary does not contain.
    """
    for request, group in zip(requests, groups, strict=True):
        for rollout in group.rollouts:
            if rollout.weight_version != version:
                raise StaleWeightsError(
                    f"stale weights: a rollout of prompt {request.index} was sampled from weight version "
                    f"{rollout.weight_version}, but the current version is {version}"
                )
            if rollout.prompt_ids != request.prompt_ids:
                raise InvalidRolloutError(
                    f"invalid rollout: prompt {request.index} was sent to the engine as {request.prompt_ids[:20]} …, "
                    f"but the engine read {rollout.prompt_ids[:20]} …"
                )
            if not rollout.completion_ids:
                raise InvalidRolloutError(
                    f"invalid rollout: the engine returned an empty completion for prompt {request.index}"
                )
            if len(rollout.logprobs) != len(rollout.completion_ids):
                raise InvalidRolloutError(
                    f"invalid rollout: the engine returned {len(rollout.logprobs)} logprobs for "
                    f"{len(rollout.completion_ids)} completion tokens of prompt {request.index}"
                )
            if max(rollout.completion_ids) >= vocab_size:
                raise InvalidRolloutError(
                    f"invalid rollout: the engine sampled token id {max(rollout.completion_ids)}, "
                    f"but the model's vocabulary has {vocab_size} tokens"
                )


def logprob_difference(batch: Batch, engine_NT: Tensor, model_NT: Tensor) -> LogprobDifference:
    """Return the difference between the engine's and the model's logprobs over all completion tokens."""
    difference = (engine_NT - model_NT).abs()[batch.loss_mask]
    return LogprobDifference(max=difference.max().item(), mean=difference.mean().item())


def check_logprobs(
    batch: Batch,
    engine_NT: Tensor,
    model_NT: Tensor,
    *,
    bound: LogprobBound,
    model_config: TransformerConfig,
    temperature: float,
    current: WeightSnapshot,
    previous: WeightSnapshot | None,
) -> LogprobDifference:
    """Return the difference between the engine's and the model's logprobs [N, T], if the difference is within `bound`.

    If the difference is larger, the logprobs are computed again in two ways: with all weights of the snapshot
    `previous`, and with the output head (lm_head) of `previous` but otherwise the weights of `current`, because an
    engine may keep a separate copy of the head. Raises StaleWeightsError when the logprobs of one of these two ways are
    more than ten times closer to the engine's logprobs than `model_NT` is. Otherwise raises NumericsError.

    `current` is the snapshot that the engine should have loaded, and `previous` is the one before. If `previous` is
    None or has no chunks, older weights are not tried, and the error is a NumericsError.
    """
    difference = logprob_difference(batch, engine_NT, model_NT)
    if is_within(difference, bound):
        return difference
    message = (
        f"engine and PyTorch logprobs differ by up to {difference.max:.3g} (mean {difference.mean:.3g}), "
        f"allowed are {bound.max:.3g} (mean {bound.mean:.3g})"
    )
    explanation = "older weights were not available for comparison"
    if previous is not None and previous.chunks:
        explanation = "older weights do not explain the difference"
        for description, stale_config, weights in _stale_candidates(
            model_config, dict(read_weights(current)), dict(read_weights(previous))
        ):
            stale_NT = logprobs_under(stale_config, weights, batch, temperature=temperature)
            stale_difference = logprob_difference(batch, engine_NT, stale_NT)
            if stale_difference.mean * _STALE_FACTOR < difference.mean:
                raise StaleWeightsError(
                    f"stale weights: {message}; with {description} of version {previous.version} instead of "
                    f"{current.version} they differ by up to {stale_difference.max:.3g}"
                )
    raise NumericsError(
        f"numerics: {message}. Weight versions and tokens agree, and {explanation}. Compare the precision and the "
        "model config of the engine with those of the PyTorch model. If, in RLHF, the difference is only the rounding "
        "error of a large model, set learning.max_logprob_difference and learning.mean_logprob_difference to larger "
        "values"
    )


def _stale_candidates(
    model_config: TransformerConfig, current: Mapping[str, Tensor], previous: Mapping[str, Tensor]
) -> Iterator[tuple[str, TransformerConfig, Iterator[tuple[str, Tensor]]]]:
    """Yield each set of weights that a stale engine may have: all weights of `previous`, then those of `current` with
    the output head of `previous`. Each is (description, model config, pairs of name and tensor).

    `current` and `previous` have the parameters of the two snapshots by Hugging Face name.
    """
    yield "the weights", model_config, iter(previous.items())
    untied_config = dataclasses.replace(model_config, tie_embeddings=False)
    # With tied embeddings, the snapshot has no output head of its own, and the embedding table is the head.
    head = "lm_head.weight" if "lm_head.weight" in previous else "model.embed_tokens.weight"
    yield "the output head", untied_config, iter({**current, "lm_head.weight": previous[head]}.items())

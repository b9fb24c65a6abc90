"""The summary of token shards in artifact.json."""

from collections import Counter
from dataclasses import dataclass

from data.tokens.shard_format import ShardManifest, SplitManifests


@dataclass(frozen=True)
class SplitCounts:
    """What one split contains."""

    documents: int
    tokens: int
    """Number of tokens to predict in one epoch: all tokens of the documents, and the end of each document."""
    bytes: int
    """Total size of the documents' texts in bytes."""
    bytes_per_token: float
    shards: int
    generations: int


@dataclass(frozen=True)
class SplitTokens:
    """Number of tokens to predict of one source in each split."""

    train: int
    validation: int


@dataclass(frozen=True)
class ShardsSummary:
    """The summary of an artifact of the stage `shards`."""

    train: SplitCounts
    validation: SplitCounts
    tokens_by_source: dict[str, SplitTokens]
    encoder: dict[str, int]
    """For each encoding library, `tiktoken` or `tokenizers`, the number of training shards whose text it encoded."""
    tokenizer: str
    """Fingerprint of the tokenizer."""
    vocab_size: int
    dtype: str
    """Type of the stored token ids, such as `uint16`."""


def summarize_shards(manifests: SplitManifests) -> ShardsSummary:
    """Return the summary of the shards that these manifests describe."""
    train, validation = (manifest.targets_by_source for manifest in manifests)
    manifest = manifests.train
    return ShardsSummary(
        train=_counts(manifests.train),
        validation=_counts(manifests.validation),
        tokens_by_source={name: SplitTokens(train[name], validation[name]) for name in manifest.sources},
        encoder=dict(sorted(Counter(shard.encoder for shard in manifest.shards).items())),
        tokenizer=manifest.tokenizer,
        vocab_size=manifest.vocab_size,
        dtype=manifest.dtype.name,
    )


def _counts(manifest: ShardManifest) -> SplitCounts:
    return SplitCounts(
        documents=manifest.num_documents,
        tokens=manifest.num_targets,
        bytes=manifest.num_bytes,
        bytes_per_token=manifest.num_bytes / max(1, manifest.num_targets),
        shards=len(manifest.shards),
        generations=len(manifest.generations),
    )

"""What artifact.json says of shards."""

from collections import Counter
from dataclasses import dataclass

from data.tokens.shard_format import ShardManifest, SplitManifests


@dataclass(frozen=True)
class SplitCounts:
    """Counts of one split."""

    documents: int
    tokens: int
    """That are predicted in one epoch: those of every document, and its end."""
    bytes: int
    """Of the documents' texts."""
    bytes_per_token: float
    shards: int
    generations: int


@dataclass(frozen=True)
class SplitTokens:
    """Tokens of one source."""

    train: int
    validation: int


@dataclass(frozen=True)
class ShardsSummary:
    train: SplitCounts
    validation: SplitCounts
    tokens_by_source: dict[str, SplitTokens]
    encoder: dict[str, int]
    """How many parts were encoded by each route (`data.tokens.encode`)."""
    tokenizer: str
    """Its fingerprint."""
    vocab_size: int
    dtype: str


def summarize_shards(manifests: SplitManifests) -> ShardsSummary:
    """The summary of shards with these manifests."""
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

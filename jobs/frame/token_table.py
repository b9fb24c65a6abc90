"""Checks that a model can read every token of its tokenizer, when a config or a command names a model folder."""

from functools import lru_cache

from cluster.storage import Storage
from data.tokens.tokenizer import load_tokenizer
from jobs.frame.artifact import Artifact


def check_token_table(artifact: Artifact) -> None:
    """Raises ValueError if the tokenizer in a Hugging Face model folder has an id for which the model has no embedding.

    Folders that Raymill made are not checked, because their models have the size of their tokenizer, or come from a
    folder that was checked. A folder without tokenizer is not checked either.
    """
    folder = artifact.model
    if artifact.is_external and folder.exists("config.json") and folder.exists("tokenizer.json"):
        _check_folder(folder, artifact.digest)


@lru_cache(maxsize=16)  # Several configs of a pipeline may name the folder, and loading a tokenizer takes seconds.
def _check_folder(folder: Storage, digest: str) -> None:
    """Raises ValueError as `check_token_table` does. `digest` is that of the folder, so that a change is noticed."""
    num_rows = folder.read_json("config.json").get("vocab_size")
    vocab = load_tokenizer(folder.local()).get_vocab()
    token, highest = max(vocab.items(), key=lambda item: item[1])
    if num_rows is not None and highest >= num_rows:
        raise ValueError(
            f"{folder.url}: the tokenizer has the token {token!r} with the id {highest:,}, but the model has "
            f"embeddings for the ids below {num_rows:,} only (vocab_size in config.json); remove the tokens that the "
            "model does not know from tokenizer.json and tokenizer_config.json, or add embeddings to the model "
            "(`resize_token_embeddings` of transformers)"
        )

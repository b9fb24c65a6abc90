"""Copies of the tokenizer of a model."""

import json

from cluster.storage import Storage
from model.huggingface_config import TOKENIZER_FILES


def copy_tokenizer(source: Storage, target: Storage, *, chat_template: str | None = None) -> None:
    """Copy the tokenizer files of the folder `source` to the folder `target`, with another chat template if given.

    Raises ValueError if `source` has no fast tokenizer.
    """
    if not source.exists("tokenizer.json"):
        raise ValueError(f"tokenizer: {source.url} has no tokenizer.json; name a folder with a fast tokenizer")
    for name in TOKENIZER_FILES:
        if source.exists(name):
            target.write_bytes(name, source.read_bytes(name))
    if chat_template is not None:
        # The template file goes before the template in tokenizer_config.json. Both are replaced, so that they agree.
        config = target.read_json("tokenizer_config.json") if target.exists("tokenizer_config.json") else {}
        target.write_bytes("tokenizer_config.json", json.dumps(config | {"chat_template": chat_template}).encode())
        target.remove("chat_template.jinja")

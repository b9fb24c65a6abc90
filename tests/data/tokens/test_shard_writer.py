"""Tests of writing shards."""

from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer, models

from cluster.storage import Storage
from data.tokens.encode import PlainEncoder
from data.tokens.shard_format import Generation, ShardManifest, write_manifest
from data.tokens.shard_reader import ShardReader
from data.tokens.shard_writer import TextDocument, write_shard

S = 0  # the separator


EMPTY = ShardManifest(tokenizer="t", vocab_size=300, begin=S, separator=S, sources=("web", "books"), generations=())


def test_no_document_has_the_separator_even_if_the_tokenizer_finds_it_in_a_text(tmp_path: Path) -> None:
    # As in T5, "</s>" is in the vocabulary of the Unigram model, so the model finds it in texts.
    pieces = [("</s>", 0.0), ("<unk>", 0.0), *((letter, -2.0) for letter in "a</s>")]
    tokenizer = Tokenizer(models.Unigram(vocab=pieces, unk_id=1))
    assert tokenizer.encode("a</s>a").ids == [2, 0, 2]
    split = Storage(str(tmp_path))
    documents = [TextDocument(text, text, "web") for text in ("a</s>a", "aa", "</s></s>", "<</s>")]
    info = write_shard(split, "shard-00000", documents, PlainEncoder(tokenizer), EMPTY)
    write_manifest(split, replace(EMPTY, generations=(Generation(corpus="c", shards=(info,)),)))
    stored = [document.tokens.tolist() for document in ShardReader(split, sequence_length=8).documents()]
    assert [ids[0] == ids[-1] == S and S not in ids[1:-1] for ids in stored] == [True] * 4
    decoded = ["".join(str(tokenizer.id_to_token(number)) for number in ids[1:-1]) for ids in stored]
    assert decoded == [document.text for document in documents]

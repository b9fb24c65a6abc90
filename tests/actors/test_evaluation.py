"""What an evaluation measures is what the model says: against direct computation, closed forms and repeated engines."""

from __future__ import annotations

import dataclasses
import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

from actors.evaluation import (
    Questions,
    SentencePair,
    TextScores,
    answer,
    common_suffix,
    preference_margins,
    prove_answers,
    score_pairs,
    score_text,
    sequence_logprobs,
    xz_size,
)
from actors.rollout import PromptTask, Rollout
from actors.weights import NumericsError, Publication
from cluster.placement import Placement
from cluster.storage import Storage
from data.chats.template import PreferenceTokens
from data.tokens.encode import fast_encoder
from data.tokens.shard_format import Generation, ShardManifest, write_manifest
from data.tokens.shard_reader import ShardReader
from data.tokens.shard_writer import TextDocument, write_shard
from data.tokens.tokenizer import fingerprint, load_encoder, load_tokenizer, separator_id
from data.tokens.tokenizer_recipe import MIN_SIZE
from model.batch import from_sequences
from model.heads import ScalarHead
from model.huggingface import load_folder
from model.objectives import logprobs, rewards
from model.quantize import compress_folder, simulate_int8
from model.transformer import Transformer

TEXTS = [
    "a short one",
    "the second document is a little longer than that",
    "x",
    "wörds that are not ascii …",
    "".join(chr(97 + 7 * place * place % 26) for place in range(300)),
]


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, policies: dict[str, Path]) -> Storage:
    """The texts as a split, in the policies' byte tokenizer; the last one is longer than their context of 128."""
    folder = policies["tied-1"]
    storage = Storage(str(tmp_path_factory.mktemp("split")))
    manifest = ShardManifest(
        tokenizer=fingerprint(folder),
        vocab_size=MIN_SIZE,
        separator=separator_id(load_tokenizer(folder)),
        sources=("test",),
        generations=(),
    )
    documents = [TextDocument(str(number), text, "test") for number, text in enumerate(TEXTS)]
    shard = write_shard(storage, "shard-00000", documents, fast_encoder(folder), manifest)
    write_manifest(storage, dataclasses.replace(manifest, generations=(Generation(corpus="c", shards=(shard,)),)))
    return storage


def scores(folder: Path, split: Storage, *, part: int = 0, num_parts: int = 1, overlap: int = 16) -> TextScores:
    return score_text(
        Storage(str(folder)),
        split,
        part=part,
        num_parts=num_parts,
        overlap=overlap,
        precision="float32",
        device="cpu",
    )


def test_text_costs_what_the_model_says_with_every_byte_and_every_end_counted(
    policies: dict[str, Path], split: Storage
) -> None:
    found = scores(policies["tied-1"], split)
    model = load_folder(policies["tied-1"])
    documents = list(ShardReader(split, sequence_length=1).documents())
    assert found.num_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert found.num_tokens.tolist() == [len(text.encode()) + 1 for text in TEXTS]  # bytes, and the end
    for index, document in enumerate(documents[:4]):
        ids = document.tokens.tolist()
        batch = from_sequences([ids], [[True] * len(ids)], length=len(ids) - 1, pad_id=0)
        assert found.nats[index] == pytest.approx(-logprobs(model, batch).sum().item(), rel=1e-5)


def test_more_context_changes_only_documents_longer_than_the_model_takes(
    policies: dict[str, Path], split: Storage
) -> None:
    little, much = (scores(policies["tied-1"], split, overlap=overlap) for overlap in (1, 100))
    assert little.nats[:4] == pytest.approx(much.nats[:4], rel=1e-6)
    assert little.nats[4] != pytest.approx(much.nats[4], rel=1e-3)
    assert little.num_tokens[4] == much.num_tokens[4] == 301


def test_parts_together_are_the_whole(policies: dict[str, Path], split: Storage) -> None:
    whole, parts = (
        scores(policies["tied-1"], split),
        [scores(policies["tied-1"], split, part=p, num_parts=2) for p in (0, 1)],
    )
    index = np.concatenate([part.index for part in parts])
    assert sorted(index.tolist()) == [0, 1, 2, 3, 4]
    assert np.concatenate([part.nats for part in parts])[np.argsort(index)] == pytest.approx(whole.nats, rel=1e-6)


def test_a_compressed_folder_is_scored_with_its_rounding(
    policies: dict[str, Path], split: Storage, tmp_path: Path
) -> None:
    compress_folder(policies["tied-1"], tmp_path / "int8", kept_dtype="float32")
    found = scores(tmp_path / "int8", split)
    simulated = load_folder(policies["tied-1"])
    simulate_int8(simulated)
    ids = next(iter(ShardReader(split, sequence_length=1).documents())).tokens.tolist()
    batch = from_sequences([ids], [[True] * len(ids)], length=len(ids) - 1, pad_id=0)
    assert found.nats[0] == pytest.approx(-logprobs(simulated, batch).sum().item(), rel=1e-4)
    assert found.nats[0] != pytest.approx(scores(policies["tied-1"], split).nats[0], rel=1e-5)


def test_xz_reads_all_texts_as_one_stream(policies: dict[str, Path], split: Storage) -> None:
    text = "".join(TEXTS).encode()
    expected = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    assert xz_size(split, Storage(str(policies["tied-1"]))) == expected


def test_common_suffix_by_hand() -> None:
    assert common_suffix([1, 2, 3, 4], [9, 3, 4]) == 2
    assert common_suffix([1], [2]) == 0
    assert common_suffix([5, 6], [6]) == 1


def test_a_continuation_is_the_sentence_without_the_name(policies: dict[str, Path]) -> None:
    folder = Storage(str(policies["untied-1"]))
    pair = SentencePair("age", "The old man sat.", "The young man sat.")
    found = score_pairs(folder, [pair, SentencePair("age", pair.counterpart, pair.stereotype)], device="cpu")
    encoder, separator = load_encoder(policies["untied-1"]), separator_id(load_tokenizer(policies["untied-1"]))

    def log_likelihood(text: str) -> float:
        (values,) = sequence_logprobs(folder, [[separator, *encoder.encode(text).ids]], device="cpu")
        return float(values.sum())

    # log p(" man sat." | "The old") is the whole less its beginning. The tokens are bytes.
    expected = (log_likelihood("The old man sat.") - log_likelihood("The old")) - (
        log_likelihood("The young man sat.") - log_likelihood("The young")
    )
    assert found.continuation[0] == pytest.approx(expected, abs=1e-4)
    assert found.sentence[0] == pytest.approx(
        log_likelihood(pair.stereotype) - log_likelihood(pair.counterpart), abs=1e-4
    )
    assert found.continuation[1] == pytest.approx(-found.continuation[0], abs=1e-5)  # order is no preference


def test_margins_are_differences_of_rewards(reward_folder: tuple[Path, ScalarHead]) -> None:
    folder, model = reward_folder
    generator = np.random.default_rng(0)
    sides = [generator.integers(6, MIN_SIZE, size=length).tolist() for length in (5, 40, 17, 3, 60, 60)]
    pairs = [PreferenceTokens(*sides[first : first + 2]) for first in (0, 2, 4)]
    found = preference_margins(Storage(str(folder)), pairs, pad_id=1, precision="float32", device="cpu")

    def reward(ids: list[int]) -> float:
        return rewards(model, torch.tensor([ids]), torch.tensor([len(ids) - 1])).item()

    assert found == pytest.approx([reward(pair.chosen) - reward(pair.rejected) for pair in pairs], abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_answers_of_another_model_are_not_measured(policies: dict[str, Path], temperature: float) -> None:
    model, other = (load_folder(policies[name]) for name in ("tied-1", "tied-2"))
    prompt, response = [10, 11, 12], [20, 21, 22, 23]
    mask = [False] * len(prompt) + [True] * len(response)
    batch = from_sequences([prompt + response], [mask], length=len(mask) - 1, pad_id=0)

    def said_by(who: Transformer) -> list[Rollout]:
        with torch.no_grad():
            # An engine that takes the likeliest token reports the logprobs of temperature 1.
            said = logprobs(who, batch, temperature or 1.0)[batch.loss_mask].tolist()
        return [Rollout(tuple(prompt), tuple(response), tuple(said), 0, False)]

    published = Publication(0, [], {})
    prove_answers(model, said_by(model), temperature, "float32", published, None)
    with pytest.raises(NumericsError, match="engine and learner logprobs differ"):
        prove_answers(model, said_by(other), temperature, "float32", published, None)


@pytest.mark.slow
def test_models_that_share_an_engine_answer_as_if_each_had_its_own(
    policies: dict[str, Path], ray_session: None
) -> None:
    prompts = [PromptTask(index, tuple(range(10, 20 + index)), 1) for index in range(3)]

    def ask(**models: str) -> dict[str, list[tuple[int, ...]]]:
        questions = {
            name: Questions(model=Storage(str(policies[policy])), prompts=prompts, stop_ids=(0,))
            for name, policy in models.items()
        }
        answers = answer(
            questions,
            temperature=1.0,
            max_new_tokens=12,
            seed=3,
            precision="float32",
            placement=Placement(cpus_per_worker=0.5),
            kv_cache_gib=0.1,
        )
        return {name: [rollout.response_ids for rollout in rollouts] for name, rollouts in answers.items()}

    together = ask(first="tied-1", second="tied-2", first_again="tied-1")
    alone = ask(second="tied-2")
    assert together["second"] == alone["second"]
    assert together["first"] == together["first_again"] != together["second"]

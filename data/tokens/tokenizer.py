"""The tokenizer: three kinds of model, special tokens, a chat template, and the folder that transformers and vLLM load.

Two tokens end things, and they are kept apart. `<|endoftext|>` stands between documents: it is the tokenizer's bos and
eos, and no chat holds it. `<|end|>` closes a message. A base model's folder names the first as its end, a chat
model's the second (`base_special_tokens`, `chat_special_tokens`); an engine stops at the tokenizer's eos as well.

Every kind is learnt from counted words (`count_words`, `learn_tokenizer`), so that many can count and one can learn.
"""

import hashlib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from data.tokens.bpe import learn_subwords

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
SYSTEM = "<|system|>"
END = "<|end|>"
UNKNOWN = "<|unk|>"
MASK = "<|mask|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD, USER, ASSISTANT, SYSTEM, END)
"""Of every kind, in the order of their ids, from 0."""
MORE_SPECIAL_TOKENS = {"bpe": (), "wordpiece": (UNKNOWN, MASK), "unigram": (UNKNOWN,)}
"""What else a kind has; these follow."""

MIN_SIZE = 256 + len(SPECIAL_TOKENS)
"""Of bpe: every byte has a token, so no text is unknown and every text comes back as it was."""

_COVERAGE = 0.9995  # the default of sentencepiece
_MAX_WORD_CHARACTERS = 100  # of WordPiece: a longer word is unknown (the default of BERT)
_MAX_LINE_BYTES = 4192  # of sentencepiece: a longer line is left out

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception(\"role must be system, user or assistant, not \" + message['role'] | string) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe:
    """How text becomes tokens, but for the size."""

    kind: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    """bpe: on bytes, so that any text comes back. wordpiece: BERT's; it forgets white space. unigram: as sentencepiece
    learns it, on characters."""
    split_digits: bool = True
    """Digits stay single tokens, so that numbers of any length are spelt alike."""
    normalization: Literal["none", "NFC", "NFKC"] = "none"
    lowercase: bool = False
    """For wordpiece."""
    byte_fallback: bool = False
    """For unigram: characters without a token are spelt in bytes instead of being unknown."""
    character_coverage: float = _COVERAGE
    """For wordpiece and unigram: part of the text whose characters, the most frequent ones, have tokens."""

    def check(self) -> None:
        """Raise ValueError for a value out of its range, or one that the kind would not heed."""
        if self.lowercase and self.kind != "wordpiece":
            raise ValueError(f"lowercase: true is for kind wordpiece, not {self.kind}; leave it out")
        if self.byte_fallback and self.kind != "unigram":
            why = "works on bytes anyway" if self.kind == "bpe" else "has no byte tokens"
            raise ValueError(f"byte_fallback: true is for kind unigram; {self.kind} {why}, so leave it out")
        if self.character_coverage != _COVERAGE and self.kind == "bpe":
            raise ValueError("character_coverage: bpe covers every character by its bytes; leave it out")
        if not 0 < self.character_coverage <= 1:
            raise ValueError(f"character_coverage: {self.character_coverage} must be above 0 and at most 1")

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """In the order of their ids, from 0."""
        return (*SPECIAL_TOKENS, *MORE_SPECIAL_TOKENS[self.kind])

    @property
    def least_size(self) -> int:
        """Tokens that there are before anything is learnt; the characters of the text come on top, but for bpe."""
        return len(self.special_tokens) + (256 if self.kind == "bpe" or self.byte_fallback else 0)


def train_tokenizer(texts: Iterable[str], *, size: int, recipe: TokenizerRecipe | None = None) -> Tokenizer:
    """A tokenizer of at most `size` tokens, special ones included (a bpe unless a recipe says otherwise); the same
    texts in any order give the same bytes."""
    recipe = recipe or TokenizerRecipe()
    words = count_words(texts, recipe)
    return learn_tokenizer(list(words), list(words.values()), size=size, recipe=recipe)


# Counting.


_SAFE_BREAK = re.compile(r"(?=[ \n])(?<=\w)")
"""Where a text may be cut without cutting a word of any kind: after a letter or digit, before a space or line end."""
_MANY_PIECES = 1 << 18


def count_words(texts: Iterable[str], recipe: TokenizerRecipe) -> Counter[str]:
    """How often each word occurs: what a token can never reach beyond, spelt as the model will see it."""
    blank = _blank(recipe)
    normalize = blank.normalizer.normalize_str if blank.normalizer else str
    words: Counter[str] = Counter()
    pieces: Counter[str] = Counter()  # most pieces come again and again, and cutting one into words is what costs
    for text in texts:
        pieces.update(_SAFE_BREAK.split(normalize(text)))
        if len(pieces) > _MANY_PIECES:
            _count_pieces(pieces, blank, words)
            pieces.clear()
    _count_pieces(pieces, blank, words)
    return words


def _count_pieces(pieces: Counter[str], blank: Tokenizer, words: Counter[str]) -> None:
    for piece, count in pieces.items():
        for word, _ in blank.pre_tokenizer.pre_tokenize_str(piece):
            words[word] += count


def _blank(recipe: TokenizerRecipe) -> Tokenizer:
    """The tokenizer around the model: what comes before it and what comes after."""
    tokenizer = Tokenizer(models.BPE())
    parts: list[Any] = [] if recipe.normalization == "none" else [_NORMALIZERS[recipe.normalization]()]
    digits = [pre_tokenizers.Digits(individual_digits=True)] if recipe.split_digits else []
    if recipe.kind == "bpe":
        cuts = [*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.decoder = decoders.ByteLevel()
    elif recipe.kind == "wordpiece":
        parts.append(normalizers.BertNormalizer(strip_accents=False, lowercase=recipe.lowercase))
        cuts = [pre_tokenizers.BertPreTokenizer(), *digits]
        tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # a clean-up would turn "do not" to "don't"
    else:
        cuts = [pre_tokenizers.Split(_UNIGRAM_WORD, behavior="isolated"), *digits]
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    if parts:
        tokenizer.normalizer = normalizers.Sequence(parts) if len(parts) > 1 else parts[0]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    return tokenizer


_NORMALIZERS = {"NFC": normalizers.NFC, "NFKC": normalizers.NFKC}
_UNIGRAM_WORD = Regex(r" *[^ \n\t<]*<| *[^ \n\t<]+| +|[\n\t]")
"""A word with the spaces before it; line ends and tabs by themselves. Spaces stay spaces, for sentencepiece's sign for
them, U+2581, may stand in a text too. A Unigram model finds all of its vocabulary in a word, also <|end|> and the bytes
<0x00> to <0xFF>, so no word goes on after a <: a document cannot speak in them."""


# Learning.


def learn_tokenizer(words: Sequence[str], counts: Sequence[int], *, size: int, recipe: TokenizerRecipe) -> Tokenizer:
    """A tokenizer of at most `size` tokens from distinct words and their counts, in any order.

    Raises ValueError when `size` has no room for the characters that need a token.
    """
    tokenizer = _blank(recipe)
    learn = {"bpe": _learn_bpe, "wordpiece": _learn_wordpiece, "unigram": _learn_unigram}[recipe.kind]
    tokenizer.model = learn(words, counts, size, recipe)
    tokenizer.add_special_tokens(list(recipe.special_tokens))
    return tokenizer


def _learn_bpe(words: Sequence[str], counts: Sequence[int], size: int, recipe: TokenizerRecipe) -> models.BPE:
    """Byte-level BPE; the same as `tokenizers.trainers.BpeTrainer` learns."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learnt = learn_subwords(words, counts, size=size, special_tokens=recipe.special_tokens, alphabet=alphabet)
    return models.BPE(vocab={token: number for number, token in enumerate(learnt.tokens)}, merges=learnt.merges)


def _learn_wordpiece(
    words: Sequence[str], counts: Sequence[int], size: int, recipe: TokenizerRecipe
) -> models.WordPiece:
    """WordPiece as `tokenizers` learns it, by byte-pair merges of characters; encoding takes the longest token first.

    Words that will be unknown teach nothing: longer ones, and those with a character beyond the coverage.
    """
    known = set(_covered(words, counts, recipe.character_coverage))
    chosen = [
        (word, count)
        for word, count in zip(words, counts, strict=True)
        if len(word) <= _MAX_WORD_CHARACTERS and known.issuperset(word)
    ]
    learnt = learn_subwords(
        [word for word, _ in chosen],
        [count for _, count in chosen],
        size=size,
        special_tokens=recipe.special_tokens,
        prefix="##",
    )
    if len(learnt.tokens) > size:
        raise ValueError(
            f"size: {size:,} has no room for the characters of the text, inside words and at their begin "
            f"({len(learnt.tokens):,} tokens); raise size, or lower character_coverage ({recipe.character_coverage})"
        )
    vocab = {token: number for number, token in enumerate(learnt.tokens)}
    return models.WordPiece(vocab=vocab, unk_token=UNKNOWN, max_input_chars_per_word=_MAX_WORD_CHARACTERS)


def _covered(words: Sequence[str], counts: Sequence[int], coverage: float) -> list[str]:
    """The most frequent characters that make up `coverage` of the text; of equals, those of the lowest code point."""
    found: Counter[str] = Counter()
    for word, count in zip(words, counts, strict=True):
        for character in word:
            found[character] += count
    ranked = sorted(found, key=lambda character: (-found[character], character))
    reached = accumulate(found[character] for character in ranked)
    bound = coverage * found.total()
    needed = next((number for number, total in enumerate(reached, start=1) if total >= bound), len(ranked))
    return ranked[:needed]


def _learn_unigram(words: Sequence[str], counts: Sequence[int], size: int, recipe: TokenizerRecipe) -> models.Unigram:
    """A unigram language model (Kudo 2018), learnt by sentencepiece."""
    import sentencepiece

    learnt = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(words, counts, size, recipe))
    pieces = [(learnt.id_to_piece(number), learnt.get_score(number)) for number in range(learnt.get_piece_size())]
    # With more digits the JSON reader of `tokenizers` would not give each score back as it was written.
    vocab = [(piece.replace("▁", " "), round(score, 9)) for piece, score in pieces]
    return models.Unigram(vocab=vocab, unk_id=len(SPECIAL_TOKENS), byte_fallback=recipe.byte_fallback)


def sentencepiece_model(words: Sequence[str], counts: Sequence[int], size: int, recipe: TokenizerRecipe) -> bytes:
    """sentencepiece's own model file. It encodes as the tokenizer does, but that a run of characters without a token,
    one unknown token to sentencepiece, may be one in each of its words to the tokenizer (with bytes there is none).

    It sees words and counts, sorted, in one thread: never the order of texts. Line end and tab, which stand in no word,
    are tokens by themselves. Raises ValueError for a size that the words do not allow.
    """
    import sentencepiece

    usable = sorted(
        (word, count)
        for word, count in zip(words, counts, strict=True)
        if not _UNUSABLE.search(word) and len(word.encode()) < _MAX_LINE_BYTES
    )
    if not usable:
        raise ValueError("corpus: the sample holds no word to learn from; give more text")
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8", newline="") as file:
        file.writelines(f"{word}\t{count}\n" for word, count in usable)
        file.flush()
        try:
            sentencepiece.SentencePieceTrainer.train(
                input=file.name, model_writer=model, vocab_size=size, **_sentencepiece_options(recipe)
            )
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2].strip()
            raise ValueError(f"size: sentencepiece cannot learn {size:,} tokens from this text: {reason}") from error
    return model.getvalue()


_UNUSABLE = re.compile(r"[\0\t\n\r▁▅]")
"""What ends a line or a field of the file for sentencepiece, and its own two signs."""


def _sentencepiece_options(recipe: TokenizerRecipe) -> dict[str, Any]:
    return {
        "model_type": "unigram",
        "input_format": "tsv",
        "num_threads": 1,
        "shuffle_input_sentence": False,
        "max_sentence_length": _MAX_LINE_BYTES,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "character_coverage": recipe.character_coverage,
        "byte_fallback": recipe.byte_fallback,
        "control_symbols": list(SPECIAL_TOKENS),
        "unk_id": len(SPECIAL_TOKENS),
        "unk_piece": UNKNOWN,
        "bos_id": -1,
        "eos_id": -1,
        "pad_id": -1,
        "user_defined_symbols": ["\n", "\t"],
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }


# Folders.


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        **{name: token for name, token in (("unk_token", UNKNOWN), ("mask_token", MASK)) if token in special},
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a Hugging Face folder, ours or another's. Raises ValueError where there is none."""
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"tokenizer: {folder} holds no tokenizer.json; give a folder with a tokenizer of the fast kind"
        )
    # Late: it brings torch, seconds that the tokenising workers need not pay.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def load_encoder(folder: Path) -> Tokenizer:
    """The bare tokenizer, for text that must not speak in special tokens: a document's `<|end|>` is characters.

    That holds for every kind we learn, and for a foreign tokenizer whose model cannot build a special token from
    characters. A Unigram model that has `</s>` in its vocabulary (T5, XLM-R) finds it in a text all the same.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def separator_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Id of the token between documents: `<|endoftext|>` where there is one (also in SmolLM2, whose chat eos is
    another), else the eos token, else the sep token (BERT has no eos)."""
    named: tuple[Any, ...] = (tokenizer.get_vocab().get(END_OF_TEXT), tokenizer.eos_token_id, tokenizer.sep_token_id)
    for found in named:
        if found is not None:
            return int(found)
    raise ValueError(
        f"tokenizer: neither {END_OF_TEXT} nor an eos or sep token is defined, so documents could not be told apart; "
        "name its eos_token in tokenizer_config.json"
    )


class TokenIds(NamedTuple):
    """The ids that a model's configuration names."""

    bos: int
    eos: int
    pad: int
    """Never the last token of a document or a chat, so that the last real token can be told from padding."""


def base_special_tokens(folder: Path) -> TokenIds:
    """Of a base model: the separator begins and ends a text."""
    tokenizer = load_tokenizer(folder)
    separator = separator_id(tokenizer)
    return TokenIds(bos=separator, eos=separator, pad=pad_id(tokenizer))


def chat_special_tokens(folder: Path) -> TokenIds:
    """Of a chat model: an answer ends where the chat template closes an assistant's message, and bos is the
    tokenizer's own, or the separator where it has none."""
    tokenizer = load_tokenizer(folder)
    own: Any = tokenizer.bos_token_id
    bos = separator_id(tokenizer) if own is None else int(own)
    return TokenIds(bos=bos, eos=chat_end_id(tokenizer), pad=pad_id(tokenizer))


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of padding: the tokenizer's own unless that ends a chat too (as in SmolLM2), else another special one."""
    ends = {chat_end_id(tokenizer)} if tokenizer.chat_template else {separator_id(tokenizer)}
    own, unknown, bos = tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id
    candidates: tuple[Any, ...] = (own, separator_id(tokenizer), unknown, bos)
    for candidate in candidates:
        if candidate is not None and candidate not in ends:
            return int(candidate)
    raise ValueError("tokenizer: no special token is free for padding; add a pad token to its tokenizer_config.json")


def vocab_size(folder: Path) -> int:
    """Rows that an embedding needs: the highest token id and one."""
    return max(load_encoder(folder).get_vocab(with_added_tokens=True).values()) + 1


def end_token_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids at which a chat's generation stops, lowest first: the token that closes the assistant's message, the
    tokenizer's eos, and the separator of documents."""
    eos: Any = tokenizer.eos_token_id
    ends = {separator_id(tokenizer), chat_end_id(tokenizer)}
    return sorted(ends if eos is None else ends | {int(eos)})


def chat_end_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of the first special token after an assistant's words in the chat template."""
    if not tokenizer.chat_template:
        raise ValueError("tokenizer: it has no chat template; add chat_template to its tokenizer_config.json")
    words = "words"
    turns = [{"role": "user", "content": words}, {"role": "assistant", "content": words}]
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    after = whole.rpartition(words)[2]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token in tokenizer.encode(after, add_special_tokens=False):
        if token in special:
            return int(token)
    raise ValueError(
        f"tokenizer: its chat template closes an assistant's message with {after!r}, which is no special token"
    )


def fingerprint(folder: Path) -> str:
    """Identity of the text-to-ids mapping in a folder's `tokenizer.json`; formatting, padding and truncation are no
    part of it, so it stays the same when transformers saves the tokenizer again."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"tokenizer: {folder} holds no tokenizer.json")
    whole = json.loads(path.read_text())
    mapping = {part: whole.get(part) for part in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()[:32]

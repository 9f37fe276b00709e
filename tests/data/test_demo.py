"""The demo corpus: SNLI's layout, equal bytes for equal seeds, balance, disjoint splits, and labels that are right.

`judge` reads the written sentences with a lexicon of its own and works the label out anew.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest

from bertnli.data.demo import write_demo_corpus
from bertnli.data.snli import SNLI_LABELS, read_pairs, read_snli

SPLITS = ("train", "dev", "test")
Pair = tuple[str, str, str]  # label, premise, hypothesis
SAME = {
    "guy": "man", "lady": "woman", "kid": "child", "asleep": "sleeping", "awake": "not sleeping", "jogging": "running",
    "playing soccer": "playing football", "riding a bicycle": "riding a bike", "outside": "outdoors",
    "inside": "indoors", "on the street": "in the street", "in the house": "at home", "": "some",
}  # fmt: skip
BELOW = {
    "person": ("man", "woman", "child"), "child": ("boy", "girl"), "animal": ("dog", "cat", "horse", "bird"),
    "dog": ("puppy",), "cat": ("kitten",), "moving": ("running", "walking", "jumping", "swimming"),
    "eating": ("eating an apple", "eating pizza"), "drinking": ("drinking coffee", "drinking water"),
    "playing": ("playing football", "playing the guitar", "playing with a ball"),
    "reading": ("reading a book", "reading a newspaper"), "some": ("two", "three"),
    "outdoors": ("in the park", "on the beach", "in the street", "in the snow"),
    "indoors": ("in the kitchen", "at home", "in a restaurant"),
}  # fmt: skip
ABOVE = {value: above for above, values in BELOW.items() for value in values}


def implied(value: str) -> list[str]:
    """The value and all above it."""
    value = SAME.get(value, value)
    return [value, *implied(ABOVE[value])] if value in ABOVE else [value]


PLACES = [value for value in (*ABOVE, *SAME, *BELOW) if implied(value)[-1] in ("outdoors", "indoors")]


def singular(noun: str) -> str:
    irregular = {"people": "person", "children": "child", "ladies": "lady", "puppies": "puppy"}
    return irregular.get(noun) or re.sub("men$", "man", noun).removesuffix("s")


def scene(sentence: str) -> dict[str, str]:
    """The slots of "Two dogs are running in the park ."."""
    text = sentence.lower().removesuffix(" .")
    if match := re.fullmatch(r"there (is|are) (.*)", text):
        text = f"{match[2]} {match[1]}"
    match = re.fullmatch(r"(?:(a|an|the|two|three|some) )?(\w+) (is|are) ?(.*)", text)
    assert match, sentence
    number, noun, be, rest = match.groups()
    slots = {"kind": noun if be == "is" else singular(noun)}
    if be == "are":
        slots["number"] = number or ""
    place = next((place for place in PLACES if f" {rest}".endswith(f" {place}")), "")
    activity = rest.removesuffix(place).strip()
    slots |= {"place": place} if place else {}
    return slots | ({"activity": SAME.get(activity, activity)} if activity else {})


def relation(premise: str | None, hypothesis: str) -> str:
    if premise is None:
        return "neutral"
    denied, asked = premise.startswith("not "), hypothesis.startswith("not ")
    p, h = implied(premise.removeprefix("not ")), implied(hypothesis.removeprefix("not "))
    if denied:
        return "neutral" if p[0] not in h else "entailment" if asked else "contradiction"
    label = "entailment" if h[0] in p else "neutral" if p[0] in h else "contradiction"
    return {"entailment": "contradiction", "contradiction": "entailment"}.get(label, label) if asked else label


def judge(premise: str, hypothesis: str) -> str:
    p, h = scene(premise), scene(hypothesis)
    assert ("number" in p) == ("number" in h)
    found = [relation(p.get(slot), value) for slot, value in h.items()]
    return next(label for label in ("contradiction", "neutral", "entailment") if label in found)


@pytest.mark.parametrize(
    ("premise", "hypothesis", "label"),
    [
        ("A man is sleeping .", "A person is asleep .", "entailment"),
        ("A puppy is running in the park .", "An animal is outside .", "entailment"),
        ("A lady is cooking .", "The woman is awake .", "entailment"),
        ("Some people are not eating .", "People are not eating pizza .", "entailment"),
        ("Two men are reading .", "Three guys are reading .", "contradiction"),
        ("A man is not reading .", "A man is reading a book .", "contradiction"),
        ("A child is indoors .", "A child is on the street .", "contradiction"),
        ("There is a boy .", "A boy is playing .", "neutral"),
        ("Some kids are playing .", "Two children are playing soccer .", "neutral"),
        ("A cat is not jumping .", "A cat is moving .", "neutral"),
    ],
)
def test_the_judge_itself(premise: str, hypothesis: str, label: str) -> None:
    assert judge(premise, hypothesis) == label


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_demo_corpus(tmp_path_factory.mktemp("demo") / "new" / "folder")
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"snli_1.0_{split}.txt" for split in SPLITS)
    return folder


@pytest.fixture(scope="module")
def corpus(folder: Path) -> dict[str, list[Pair]]:
    found = {}
    for split in SPLITS:
        premises, hypotheses, labels = read_snli(folder, split=split)  # type: ignore[arg-type]
        names = [SNLI_LABELS[label] for label in labels]
        found[split] = list(zip(names, premises, hypotheses, strict=True))
    return found


def test_labels_are_right_and_balanced(corpus: dict[str, list[Pair]]) -> None:
    for split, count in zip(SPLITS, (20000, 1500, 1500), strict=True):
        assert len(corpus[split]) == count
        for label, premise, hypothesis in corpus[split]:
            assert judge(premise, hypothesis) == label, (premise, hypothesis)
        shares = Counter(label for label, *_ in corpus[split])
        assert all(0.29 < shares[label] / count < 0.38 for label in SNLI_LABELS)


def test_layout(folder: Path) -> None:
    for split in SPLITS:
        path = folder / f"snli_1.0_{split}.txt"
        parse, text = read_pairs(path), read_pairs(path, columns="text")
        assert parse.second is not None
        assert text.second is not None
        for words, sentence in zip([*parse.first, *parse.second], [*text.first, *text.second], strict=True):
            assert words == sentence[:-1] + " ."
        header, *rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
        assert len({row[header.index("pairID")] for row in rows}) == len(rows)
        for row in rows:
            binary, tree = row[1], row[3]
            assert binary.count("(") == binary.count(")") == len(re.findall(r"[^() ]+", binary)) - 1  # a binary tree
            assert re.findall(r"\(\S+ ([^()\s]+)\)", tree) == re.findall(r"[^() ]+", binary)


def test_splits_share_no_premise_and_no_pair_repeats(corpus: dict[str, list[Pair]], tmp_path: Path) -> None:
    premises = {split: {premise for _, premise, _ in pairs} for split, pairs in corpus.items()}
    assert premises["train"].isdisjoint(premises["dev"] | premises["test"])
    assert premises["dev"].isdisjoint(premises["test"])
    pairs = [pair[1:] for split in SPLITS for pair in corpus[split]]
    assert len(set(pairs)) == len(pairs)
    other, *_ = read_snli(write_demo_corpus(tmp_path, seed=1, train=0, dev=0, test=300), split="test")
    assert premises["train"].isdisjoint(other)


def test_hypothesis_alone_says_little(corpus: dict[str, list[Pair]]) -> None:
    """The best guess from single words of the hypothesis is right in less than 45 % of the pairs."""
    counts: dict[str, Counter[str]] = {}
    for label, _, hypothesis in corpus["train"]:
        for word in hypothesis.split():
            counts.setdefault(word, Counter())[label] += 1
    right = 0
    for label, _, hypothesis in corpus["test"]:
        votes: Counter[str] = Counter()
        for word in hypothesis.split():
            for name, count in counts.get(word, Counter()).items():
                votes[name] += count / sum(counts[word].values())  # type: ignore[assignment]
        right += max(votes, key=votes.__getitem__) == label
    assert right / len(corpus["test"]) < 0.45


def test_words(corpus: dict[str, list[Pair]]) -> None:
    words = {s: {word for _, *pair in corpus[s] for text in pair for word in text.lower().split()} for s in SPLITS}
    assert words["dev"] | words["test"] <= words["train"]
    everyday = (
        "man woman person people child boy girl dog cat sleeping asleep awake eating running playing outdoors not"
    )
    assert set(everyday.split()) <= words["train"]


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join((folder / f"snli_1.0_{split}.txt").read_bytes() for split in SPLITS)).hexdigest()


def test_seed_decides_every_byte(tmp_path: Path) -> None:
    sizes = {"train": 300, "dev": 50, "test": 50}
    first, again, other = (
        write_demo_corpus(tmp_path / name, seed=seed, **sizes) for name, seed in (("a", 7), ("b", 7), ("c", 8))
    )
    assert digest(first) == digest(again) != digest(other)
    # Equal in all versions of Python; another value means that the corpus is not portable.
    assert digest(first) == "3b4b067c2e8a2a92d5204d07c54b65092ed590fb4a2d84f4c40dd80899ed2055"
    whole = (first / "snli_1.0_train.txt").read_bytes()
    part = (write_demo_corpus(other, seed=7, train=100, dev=0, test=0) / "snli_1.0_train.txt").read_bytes()
    assert whole.startswith(part)  # a smaller corpus is the beginning of a larger one


def test_bad_sizes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dev must not be negative; found -1"):
        write_demo_corpus(tmp_path, dev=-1)
    with pytest.raises(ValueError, match="seed must not be negative; found -5"):
        write_demo_corpus(tmp_path, seed=-5)
    assert list(tmp_path.iterdir()) == []

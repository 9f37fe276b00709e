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
    "inside": "indoors", "on the street": "in the street", "in the house": "at home", "": "some", "large": "big",
    "little": "small",
}  # fmt: skip
BELOW = {
    "person": ("man", "woman", "child"), "child": ("boy", "girl"), "animal": ("dog", "cat", "horse", "bird"),
    "dog": ("puppy",), "cat": ("kitten",), "moving": ("running", "walking", "jumping", "swimming"),
    "eating": ("eating an apple", "eating pizza"), "drinking": ("drinking coffee", "drinking water"),
    "playing": ("playing football", "playing the guitar", "playing with a ball"),
    "reading": ("reading a book", "reading a newspaper"), "riding": ("riding a bike",), "some": ("two", "three"),
    "outdoors": ("in the park", "on the beach", "in the street", "in the snow"),
    "indoors": ("in the kitchen", "at home", "in a restaurant"),
}  # fmt: skip
ABOVE = {value: above for above, values in BELOW.items() for value in values}
KINDS = {"person", "man", "woman", "child", "boy", "girl", "animal", "dog", "cat", "horse", "bird", "puppy", "kitten"}
OPPOSITES = ({"happy", "sad"}, {"big", "small"})


def implied(value: str) -> list[str]:
    """The value and all above it."""
    value = SAME.get(value, value)
    return [value, *implied(ABOVE[value])] if value in ABOVE else [value]


PLACES = [value for value in (*ABOVE, *SAME, *BELOW) if implied(value)[-1] in ("outdoors", "indoors")]


def singular(noun: str) -> str:
    irregular = {"people": "person", "children": "child", "ladies": "lady", "puppies": "puppy"}
    return irregular.get(noun) or re.sub("^(wo)?men$", lambda m: f"{m[1] or ''}man", noun).removesuffix("s")


def scene(sentence: str) -> dict[str, str]:
    """The slots of "Two big dogs are running in the park .". An invented word has the marks of its slot's parent."""
    text = sentence.lower().removesuffix(" .")
    if match := re.fullmatch(r"there (is|are) (.*)", text):
        text = f"{match[2]} {match[1]}"
    match = re.fullmatch(r"(?:(a|an|the|two|three|some) )?(?:(\w+) )?(\w+) (is|are) ?(.*)", text)
    assert match, sentence
    number, quality, noun, be, rest = match.groups()
    noun = noun if be == "is" else singular(noun)
    slots = {"kind": noun if SAME.get(noun, noun) in KINDS else f"person/{noun}"}
    slots |= {"quality": SAME.get(quality, quality)} if quality else {}
    if be == "are":
        slots["number"] = number or ""
    place = next((place for place in PLACES if f" {rest}".endswith(f" {place}")), "")
    if not place and (match := re.search(r"\b(on|in|at|near|with) (?:a|the) (?!ball$)\w+$", rest)):
        place = match[0]
    activity = rest.removesuffix(place).strip()
    if place not in PLACES:  # the same place with another article
        place = place.replace("near", "at").replace(" a ", " the ")
    slots |= {"place": place} if place else {}
    if not activity:
        return slots
    denial, action = re.fullmatch(r"(not )?(.*)", SAME.get(activity, activity)).groups()  # type: ignore[union-attr]
    action = SAME.get(action, action)
    top = action.split()[0]
    action = f"{top}/{action}" if top in BELOW and action not in ABOVE and action != top else action
    return slots | {"activity": f"{denial or ''}{action}"}


def above(value: str) -> list[str]:
    """`implied`, also of "eating/eating sushi" and "person/doctor"."""
    return [value, value.split("/")[0]] if "/" in value else implied(value)


def relation(slot: str, premise: str | None, hypothesis: str) -> str:
    if premise is None:
        return "neutral"
    denied, asked = premise.startswith("not "), hypothesis.startswith("not ")
    p, h = above(premise.removeprefix("not ")), above(hypothesis.removeprefix("not "))
    if slot == "quality" and p != h:
        assert {premise, hypothesis} in OPPOSITES
    if denied:
        return "neutral" if p[0] not in h else "entailment" if asked else "contradiction"
    label = "entailment" if h[0] in p else "neutral" if p[0] in h else "contradiction"
    return {"entailment": "contradiction", "contradiction": "entailment"}.get(label, label) if asked else label


def judge(premise: str, hypothesis: str) -> str:
    p, h = scene(premise), scene(hypothesis)
    assert ("number" in p) == ("number" in h)
    found = [relation(slot, p.get(slot), value) for slot, value in h.items()]
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
        ("A big dog is sleeping .", "A large animal is asleep .", "entailment"),
        ("Sad guys are eating .", "Happy guys are eating .", "contradiction"),
        ("A glop is eating snurf on the bink .", "A person is eating .", "entailment"),
        ("A man is riding a snurf on the bink .", "A man is riding the flum .", "contradiction"),
        ("A man is eating .", "A man is eating a snurf .", "neutral"),
        ("A kid is snurfing near the bink .", "A kid is at a bink .", "entailment"),
        ("A kid is snurfing .", "A kid is sleeping .", "contradiction"),
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
    for split, count in zip(SPLITS, (40000, 1500, 1500), strict=True):
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
    everyday = (
        "man woman person people child boy girl dog cat sleeping asleep awake eating running playing outdoors not"
    )
    assert set(everyday.split()) <= words["train"] & words["dev"] & words["test"]
    assert len(words["train"]) > 2000  # most of them invented
    assert len(words["test"] - words["train"]) > 100


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join((folder / f"snli_1.0_{split}.txt").read_bytes() for split in SPLITS)).hexdigest()


def test_seed_decides_every_byte(tmp_path: Path) -> None:
    sizes = {"train": 300, "dev": 50, "test": 50}
    first, again, other = (
        write_demo_corpus(tmp_path / name, seed=seed, **sizes) for name, seed in (("a", 7), ("b", 7), ("c", 8))
    )
    assert digest(first) == digest(again) != digest(other)
    # Equal in all versions of Python; another value means that the corpus is not portable.
    assert digest(first) == "705a6de3a0c68ac254d60bb8193619cd2253ca3f11f95a631a8ca4506edc6c78"
    whole = (first / "snli_1.0_train.txt").read_bytes()
    part = (write_demo_corpus(other, seed=7, train=100, dev=0, test=0) / "snli_1.0_train.txt").read_bytes()
    assert whole.startswith(part)  # a smaller corpus is the beginning of a larger one


def test_bad_sizes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dev must not be negative; found -1"):
        write_demo_corpus(tmp_path, dev=-1)
    with pytest.raises(ValueError, match="seed must not be negative; found -5"):
        write_demo_corpus(tmp_path, seed=-5)
    assert list(tmp_path.iterdir()) == []

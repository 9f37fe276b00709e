"""The generated corpus: layout, reproducibility, balance, and labels that follow from the pair and from nothing less.

`judge` reads the written sentences with regular expressions and a lexicon of its own, and works out the label anew.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

LABELS = ("entailment", "contradiction", "neutral")
SPLITS = ("train", "dev", "test")
COLUMNS = (
    "gold_label sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse sentence1 sentence2 "
    "captionID pairID label1 label2 label3 label4 label5"
)
Row = dict[str, str]


def read(folder: Path, split: str) -> list[Row]:
    header, *lines = (folder / f"snli_1.0_{split}.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    from bertnli.data import demo

    return demo


@pytest.fixture(scope="module")
def corpus(demo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    folder = demo.write_demo_corpus(tmp_path_factory.mktemp("demo") / "new" / "folder")
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"snli_1.0_{split}.txt" for split in SPLITS)
    return {split: read(folder, split) for split in SPLITS}


# --- an independent judge ---------------------------------------------------------------------------------------------

PARENTS = {
    "adult": "person",
    "child": "person",
    "man": "adult",
    "woman": "adult",
    "boy": "child",
    "girl": "child",
    **dict.fromkeys(("policeman", "fisherman", "waiter", "fireman"), "man"),
    **dict.fromkeys(("policewoman", "waitress", "actress", "ballerina"), "woman"),
    "schoolboy": "boy",
    "schoolgirl": "girl",
    **dict.fromkeys(("dog", "cat", "horse", "bird"), "animal"),
    **dict.fromkeys(("poodle", "beagle", "terrier", "spaniel"), "dog"),
    **dict.fromkeys(("siamese", "tabby"), "cat"),
    **dict.fromkeys(("pony", "stallion"), "horse"),
    **dict.fromkeys(("parrot", "crow", "duck"), "bird"),
    **dict.fromkeys(("eating an apple", "eating a banana", "eating a pear"), "eating fruit"),
    **dict.fromkeys(("drinking coffee", "drinking tea", "drinking juice"), "having a drink"),
    **{f"playing the {name}": "playing an instrument" for name in ("guitar", "piano", "violin", "drums")},
    **dict.fromkeys(("playing football", "playing tennis", "playing basketball"), "playing a sport"),
    **dict.fromkeys(("reading a book", "reading a newspaper", "reading a letter"), "reading"),
    **dict.fromkeys(("riding a bicycle", "riding a motorcycle", "riding a scooter"), "riding"),
    **dict.fromkeys(("carrying a bag", "carrying a box", "carrying a ladder"), "carrying something"),
    **dict.fromkeys(("running", "walking", "jumping"), "moving"),
    **dict.fromkeys(("eating grass", "eating meat", "eating bread"), "eating"),
    **{f"in the {name}": "outdoors" for name in ("park", "street", "garden")},
    **dict.fromkeys(("on the beach", "along the river", "on a bridge"), "outdoors"),
    **{f"in the {name}": "indoors" for name in ("kitchen", "library", "museum", "shop", "office")},
    "at the station": "indoors",
    **dict.fromkeys(("red", "blue", "green", "yellow", "black", "white", "pink", "purple"), "in"),
    **dict.fromkeys(("two", "three", "four", "five"), "some"),
}
PLURALS = {"people": "person", "children": "child", "waitresses": "waitress", "actresses": "actress"}
PLURALS |= {"ponies": "pony", "tabbies": "tabby", "scarves": "scarf"}
PLACES = [name for name, parent in PARENTS.items() if parent in ("outdoors", "indoors")] + ["outdoors", "indoors"]
TIMES = ["in the morning", "at noon", "in the evening", "at night"]
AIMS = ["for money", "for a contest", "for a movie", "with a friend"]
CLOTHES = ("coat", "hat", "shirt", "scarf")


def singular(word: str) -> str:
    if word in PLURALS:
        return PLURALS[word]
    word = re.sub("men$", "man", word)
    return word[:-1] if word.endswith("s") and (word[:-1] in PARENTS or word[:-1] in (*CLOTHES, "animal")) else word


def relation(premise: str, hypothesis: str) -> str:
    """`""` says nothing; two values contradict each other unless one implies the other."""

    def implied(value: str) -> set[str]:
        found = {value, ""}
        while value in PARENTS:
            value = PARENTS[value]
            found.add(value)
        return found

    if hypothesis in implied(premise):
        return "entailment"
    return "neutral" if premise in implied(hypothesis) else "contradiction"


def strongest(relations: list[str]) -> str:
    return next(label for label in ("contradiction", "neutral", "entailment") if label in relations)


def adjuncts(text: str) -> tuple[str, dict[str, str]]:
    """What stands before the place, the time and the aim, and these."""
    found = {}
    for slot, phrases in (("aim", AIMS), ("time", TIMES), ("place", PLACES)):
        found[slot] = next((phrase for phrase in phrases if f" {text}".endswith(f" {phrase}")), "")
        text = text.removesuffix(found[slot]).strip()
    return text, found


def person(text: str) -> dict[str, str]:
    """The slots of "two tall men in red coats and blue hats"."""
    who, *worn = re.split(r" and (?:(?=in |without ))?| (?=in |without )", text)
    number, *adjectives, kind = who.split()
    slots = {"number": "a" if number == "an" else number, "kind": singular(kind)}
    slots |= {{"young": "age", "old": "age", "tall": "height", "short": "height"}.get(a, a): a for a in adjectives}
    for size in ("big", "small"):
        if slots.pop(size, ""):
            slots["size"] = size
    for fur in ("black", "white", "brown", "gray"):
        if slots.pop(fur, ""):
            slots["fur"] = fur
    preposition = ""
    for phrase in worn:
        words = [word for word in phrase.split() if word not in ("a", "an", "and")]
        if words[0] in ("in", "without"):
            preposition = words.pop(0)
        colour = words[0] if len(words) == 2 else preposition
        slots[singular(words[-1])] = colour
    return slots


def scene(text: str) -> dict[str, str]:
    if match := re.fullmatch(r"there (?:is|are) (.*)", text):
        subject, found = adjuncts(match[1])
        return person(subject) | found
    match = re.fullmatch(r"(.*?) (?:is|are) (.*)", text)
    assert match, text
    doing, found = adjuncts(match[2])
    slots = person(match[1]) | found | {"doing": doing.removeprefix("not ")}
    return slots | ({"not": "not"} if doing.startswith("not ") else {})


def judge_scenes(premise: str, hypothesis: str) -> str:
    p, h = scene(premise), scene(hypothesis)
    denied = (p.pop("not", ""), h.pop("not", ""))
    doing = p.pop("doing", ""), h.pop("doing", "")
    relations = [relation(p.get(slot, ""), value) for slot, value in h.items()]
    straight = relation(*doing)
    if denied == ("", ""):
        relations.append(straight)
    elif denied == ("", "not"):
        relations.append({"entailment": "contradiction", "contradiction": "entailment"}.get(straight, straight))
    elif denied == ("not", "not"):
        relations.append("entailment" if relation(doing[1], doing[0]) == "entailment" else "neutral")
    else:
        assert doing[1]
        relations.append("contradiction" if relation(doing[1], doing[0]) == "entailment" else "neutral")
    return strongest(relations)


def judge_roles(premise: str, hypothesis: str) -> str:
    pattern = r"the (\w+) is (\w+) the (\w+)"
    h = re.fullmatch(pattern, hypothesis)
    p = re.match(pattern, premise)
    assert h, hypothesis
    if not p:
        assert re.match(rf"the \w+ and the \w+ are (?!{h[2]})", premise), premise
        return "neutral"
    return strongest([relation(a, b) for a, b in zip(p.groups(), h.groups(), strict=True)])


def judge_wearers(premise: str, hypothesis: str) -> str:
    p, h = (adjuncts(text)[0].split(" is next to ") for text in (premise, hypothesis))
    found = []
    for one, other in zip(p, h, strict=True):
        wears = person(one)
        found += [relation(wears.get(slot, ""), value) for slot, value in person(other).items()]
    return strongest(found)


def judge_quantifiers(premise: str, hypothesis: str) -> str:
    pattern = r"(all|some|none) of the (\w+) are (.*)"
    (p, p_kind, p_text), (h, h_kind, h_text) = (re.fullmatch(pattern, t).groups() for t in (premise, hypothesis))  # type: ignore[union-attr]
    (p_doing, p_where), (h_doing, h_where) = adjuncts(p_text), adjuncts(h_text)
    assert not any(h_where.values()), hypothesis
    placed = any(p_where.values())
    p_kind, h_kind = singular(p_kind), singular(h_kind)
    does = relation(p_doing, h_doing)
    covers = relation(h_kind, p_kind) == "entailment"  # the premise speaks of all whom the hypothesis names
    if p == "all" and covers and does == "contradiction":
        return "entailment" if h == "none" else "contradiction"
    if p == "none":
        denied = covers and relation(h_doing, p_doing) == "entailment" and not placed
        return ("entailment" if h == "none" else "contradiction") if denied else "neutral"
    if does != "entailment":
        return "neutral"
    if h == "none":
        return "contradiction" if relation(p_kind, h_kind) == "entailment" else "neutral"
    if h == "all":
        return "entailment" if p == "all" and covers else "neutral"
    return "entailment" if relation(p_kind, h_kind) == "entailment" else "neutral"


def judge(row: Row) -> tuple[str, str]:
    """The label worked out anew, and the template's name."""
    premise, hypothesis = (row[name].lower().removesuffix(".") for name in ("sentence1", "sentence2"))
    if " of the " in hypothesis:
        return judge_quantifiers(premise, hypothesis), "quantifiers"
    if hypothesis.startswith("the "):
        return judge_roles(premise, hypothesis), "roles"
    if " is next to " in hypothesis:
        return judge_wearers(premise, hypothesis), "wearers"
    return judge_scenes(premise, hypothesis), "scenes"


@pytest.mark.parametrize(
    ("premise", "hypothesis", "label"),
    [
        ("A poodle is running in the park.", "A dog is moving outdoors.", "entailment"),
        ("Two men are reading.", "Three men are reading.", "contradiction"),
        ("Some men are reading.", "Three men are reading.", "neutral"),
        ("A man is cooking.", "A man is not cooking.", "contradiction"),
        ("A man is cooking.", "A man is not sleeping.", "entailment"),
        ("A man is not reading.", "A man is reading a book.", "contradiction"),
        ("There is a boy in a red coat and a blue hat.", "There is a boy in a blue coat.", "contradiction"),
        ("There is a boy in a red coat and a blue hat.", "There is a boy in a red coat.", "entailment"),
        ("There is a boy in a coat and without a hat.", "There is a boy in a red coat.", "neutral"),
        ("There is a boy in a coat and without a hat.", "There is a boy in a hat.", "contradiction"),
        ("The girl is hugging the boy.", "The boy is hugging the girl.", "contradiction"),
        ("The schoolboy is hugging the girl at noon.", "The boy is hugging the girl.", "entailment"),
        ("All of the dogs are sleeping at noon.", "Some of the dogs are sleeping.", "entailment"),
        ("Some of the dogs are sleeping.", "All of the dogs are sleeping.", "neutral"),
        ("None of the dogs are sleeping at night.", "None of the dogs are sleeping.", "neutral"),
    ],
)
def test_the_judge_itself(premise: str, hypothesis: str, label: str) -> None:
    assert judge({"sentence1": premise, "sentence2": hypothesis})[0] == label


def test_labels_follow_from_the_pair(corpus: dict[str, list[Row]]) -> None:
    templates = Counter()
    for split in SPLITS:
        for row in corpus[split]:
            label, template = judge(row)
            assert row["gold_label"] == label, row
            templates[template, label] += 1
    assert len(templates) == 12
    assert min(templates.values()) > 100, templates


# --- files ------------------------------------------------------------------------------------------------------------


def test_layout(corpus: dict[str, list[Row]]) -> None:
    for split, count in zip(SPLITS, (20000, 1500, 1500), strict=True):
        rows = corpus[split]
        assert len(rows) == count
        assert " ".join(rows[0]) == COLUMNS
        assert len({row["pairID"] for row in rows}) == count
        for row in rows:
            assert len(row) == 14
            assert row["gold_label"] == row["label1"]
            assert row["gold_label"] in LABELS
            for i in "12":
                parse, sentence = row[f"sentence{i}_binary_parse"], row[f"sentence{i}"]
                tokens = re.sub(r"\s{2,}", " ", re.sub(r"[()]", "", parse)).strip()  # as the book extracts them
                assert tokens == sentence[:-1] + " ."
                assert tokens[0].isupper()
                assert parse.count("(") == parse.count(")") == len(tokens.split()) - 1  # a binary tree
                leaves = re.findall(r"\(\S+ ([^()\s]+)\)", row[f"sentence{i}_parse"])
                assert " ".join(leaves) == tokens


def test_every_label_is_near_a_third(corpus: dict[str, list[Row]]) -> None:
    for split in SPLITS:
        for label in LABELS:
            share = np.mean([row["gold_label"] == label for row in corpus[split]])
            assert 0.29 < share < 0.38, (split, label)


def test_splits_share_no_premise_and_no_pair_repeats(corpus: dict[str, list[Row]]) -> None:
    premises = {split: {row["sentence1"] for row in corpus[split]} for split in SPLITS}
    assert premises["train"].isdisjoint(premises["dev"] | premises["test"])
    assert premises["dev"].isdisjoint(premises["test"])
    pairs = [(row["sentence1"], row["sentence2"]) for split in SPLITS for row in corpus[split]]
    assert len(set(pairs)) == len(pairs)


def test_vocabulary(corpus: dict[str, list[Row]]) -> None:
    words = {
        split: {word for row in corpus[split] for i in "12" for word in row[f"sentence{i}"].lower().strip(".").split()}
        for split in SPLITS
    }
    assert 150 < len(words["train"]) < 400
    assert words["dev"] | words["test"] <= words["train"]


# --- reproducibility --------------------------------------------------------------------------------------------------


def digest(folder: Path) -> str:
    return hashlib.sha256(b"".join((folder / f"snli_1.0_{split}.txt").read_bytes() for split in SPLITS)).hexdigest()


def test_seed_decides_every_byte(demo: ModuleType, tmp_path: Path) -> None:
    sizes = {"train": 300, "dev": 50, "test": 50}
    first, again, other = (
        demo.write_demo_corpus(tmp_path / name, seed=seed, **sizes) for name, seed in (("a", 7), ("b", 7), ("c", 8))
    )
    assert digest(first) == digest(again)
    assert digest(first) != digest(other)
    # The same in Python 3.10, 3.11, 3.12 and 3.13; another value elsewhere means that the corpus is not portable.
    assert digest(first) == "4d6e7c9b0a858c942867804e6237dc24d93ce5cedc8be01212a1968ac7845963"
    # A run over an older corpus replaces it, and a smaller one is a prefix of a larger.
    assert digest(demo.write_demo_corpus(other, seed=7, **sizes)) == digest(first)
    assert read(demo.write_demo_corpus(other, seed=7, train=100, dev=0, test=0), "train") == read(first, "train")[:100]
    assert read(other, "dev") == []


def test_splits_of_different_seeds_are_disjoint_too(
    demo: ModuleType, corpus: dict[str, list[Row]], tmp_path: Path
) -> None:
    other = read(demo.write_demo_corpus(tmp_path, seed=1, train=0, dev=0, test=500), "test")
    assert {row["sentence1"] for row in corpus["train"]}.isdisjoint(row["sentence1"] for row in other)


def test_bad_sizes(demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="dev must not be negative; found -1"):
        demo.write_demo_corpus(tmp_path, dev=-1)
    with pytest.raises(ValueError, match="seed must not be negative; found -5"):
        demo.write_demo_corpus(tmp_path, seed=-5)
    monkeypatch.setattr(demo, "TEMPLATES", (lambda dice, label: ((["a dog"], ["is", "running"]),) * 2,))
    with pytest.raises(ValueError, match=r"train=20000: the grammar has no more than about [01] different pairs"):
        demo.write_demo_corpus(tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- difficulty -------------------------------------------------------------------------------------------------------


def naive_bayes_accuracy(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> float:
    """Multinomial naive Bayes on bags of words: fit on (text, label) pairs, accuracy on others."""
    index = {word: i for i, word in enumerate(sorted({w for text, _ in train for w in text.lower().split()}))}

    def bags(rows: list[tuple[str, str]]) -> np.ndarray:
        counts = np.zeros((len(rows), len(index)))
        for row, (text, _) in enumerate(rows):
            for word in text.lower().split():
                if word in index:
                    counts[row, index[word]] += 1
        return counts

    labels = np.array([LABELS.index(label) for _, label in train])
    x = bags(train)
    per_label = np.stack([x[labels == k].sum(0) for k in range(3)]) + 1.0  # (3, V)
    log_likelihood = np.log(per_label / per_label.sum(1, keepdims=True))
    scores = bags(test) @ log_likelihood.T + np.log(np.bincount(labels, minlength=3) / len(labels))  # (N, 3)
    return float(np.mean(scores.argmax(1) == [LABELS.index(label) for _, label in test]))


def test_hypothesis_alone_says_little(corpus: dict[str, list[Row]]) -> None:
    texts = {s: [(row["sentence2"].strip("."), row["gold_label"]) for row in corpus[s]] for s in ("train", "test")}
    accuracy = naive_bayes_accuracy(texts["train"], texts["test"])
    assert accuracy < 0.45
    # The classifier is no straw man: one word that gives the label away, and it finds it.
    given_away = {s: [(f"{text} {label}", label) for text, label in rows] for s, rows in texts.items()}
    assert naive_bayes_accuracy(given_away["train"], given_away["test"]) > 0.95
    # Nor does it find much in both sentences as one bag: the pair must be compared.
    both = {
        s: [(f"{row['sentence1']} {row['sentence2']}".replace(".", ""), row["gold_label"]) for row in corpus[s]]
        for s in ("train", "test")
    }
    assert naive_bayes_accuracy(both["train"], both["test"]) < 0.6


def test_a_hypothesis_that_comes_again_has_other_labels(demo: ModuleType, corpus: dict[str, list[Row]]) -> None:
    labels: dict[str, Counter[str]] = {}
    for row in corpus["train"]:
        labels.setdefault(row["sentence2"], Counter())[row["gold_label"]] += 1
    repeated = [found for found in labels.values() if found.total() == 3]
    assert len(repeated) > 100
    # Three draws of three equally likely labels show 2.11 different ones on average.
    assert np.mean([len(found) for found in repeated]) > 2.0

"""A small NLI corpus from a grammar of captions, so that the demo needs no download.

A caption says who does what and where. The values of each of these slots form trees: a value implies those above it and
excludes those of other branches ("eating an apple" implies "eating", and excludes "sleeping"). So the premise's value p
implies the hypothesis's value h (entailment), or h implies p or p is not mentioned (neutral), or p and h exclude each
other (contradiction). A pair is a contradiction if any slot is, else neutral if any slot is, else an entailment.

Some values have an invented word in place of "@" or "#", another one in each pair. From them a model learns to compare
words that it does not know.

The hypothesis is drawn whatever the label, and then a premise that gives it the label. The hypothesis alone therefore
says nothing about the label: a model has to compare the two sentences.
"""

from __future__ import annotations

import os
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from bertnli.data.files import atomic_path

Tree = dict[str, list[str]]  # value -> the values that it implies: itself, its parent, ... up to a root
Scene = dict[str, str]  # slot -> value; a slot that is not mentioned is absent

ENTAILMENT, CONTRADICTION, NEUTRAL = LABELS = ("entailment", "contradiction", "neutral")
HEADER = (
    "gold_label\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\t"
    "sentence2\tcaptionID\tpairID\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5"
)
WORDING: dict[str, list[str]] = {}  # value -> the ways to say it


def _tree(text: str) -> Tree:
    """Read "value|synonym|... > values below it, ...; ..."."""
    tree: Tree = {}
    for branch in text.split("; "):
        top, *below = (words.split("|") for words in re.split(" > |, ", branch))
        for wording in (top, *below):
            WORDING.setdefault(wording[0], wording)
            tree.setdefault(wording[0], [wording[0], *(tree[top[0]] if wording is not top else [])])
    return tree


NUMBERS = _tree("some| > two, three")
QUALITIES = _tree("young; tall; happy; sad; big|large; small|little; @")
KINDS = _tree(
    "person > man|guy, woman|lady, child|kid, @, #; child > boy, girl; "
    "animal > dog, cat, horse, bird; dog > puppy; cat > kitten"
)
ACTIVITIES = _tree(
    "sleeping|asleep; sitting; moving > running|jogging, walking, jumping, swimming; "
    "eating > eating an apple, eating pizza, eating @, eating a #; drinking > drinking coffee, drinking water; "
    "playing > playing football|playing soccer, playing the guitar, playing with a ball, playing @, playing the #; "
    "reading > reading a book, reading a newspaper; riding > riding a bike|riding a bicycle, riding a @, riding the #; "
    "cooking; working; dancing; singing; talking; @ing; #ing"
)
PLACES = _tree(
    "outdoors|outside > in the park, on the beach, in the street|on the street, in the snow; "
    "indoors|inside > in the kitchen, at home|in the house, in a restaurant; "
    "on a @|on the @; in a @|in the @; at the @|near the @; with a @|with the @"
)
SLOTS = dict(number=NUMBERS, quality=QUALITIES, kind=KINDS, activity=ACTIVITIES, place=PLACES)
HYPOTHESIS_ODDS = dict(number=0.25, quality=0.1, kind=1, activity=0.8, place=0.3)  # of mentioning a slot
PREMISE_ODDS = dict(number=0, quality=0.15, kind=1, activity=0.25, place=0.2)  # of adding one to the hypothesis's
OPPOSITES = ({"happy", "sad"}, {"big", "small"})
VAGUE = {"sitting", "working", "talking"}  # who does that may do something else too, but sleep
OUTDOOR = {"riding", "playing football", "swimming"}
FOR_ANIMALS = {"sleeping", "sitting", "eating", "drinking", "drinking water", "playing", "playing with a ball"}
PLURALS = dict(person="people", man="men", woman="women", lady="ladies", child="children", puppy="puppies")
KNOWN = {word for wording in WORDING.values() for words in wording for word in words.split()}
LETTERS = [
    text.split(" ")
    for text in (
        "b br c ch d f fl g gr h j k l m n p pl r s sh sk st t th tr v w",
        "a e i o u ai ee oo ou y",
        " l m n nd nt p r s st t ck",
    )
]


def _pick(rng: random.Random, values: Sequence[str]) -> str:
    return values[int(rng.random() * len(values))]  # of Random, only random() is equal in every version of Python


def _invented_word(rng: random.Random) -> str:
    while True:
        word = "".join(_pick(rng, letters) for _ in range(1 + int(rng.random() * 3)) for letters in LETTERS)
        if len(word) > 2 and word not in KNOWN:
            return word


def _unclear(slot: str, premise: str, hypothesis: str) -> bool:
    """Whether two values that exclude each other in the tree may go together after all."""
    both = {premise, hypothesis}
    invented = [value for value in both if "@" in value or "#" in value]
    if slot == "quality":
        return both not in OPPOSITES
    if slot == "activity":
        roots = {ACTIVITIES[value][-1] for value in both}
        verbs = [value for value in invented if value.endswith("ing")]
        unsure = len(verbs) == 1 and not roots.isdisjoint({"moving", "playing", "riding"})
        return unsure or ("sleeping" not in roots and not VAGUE.isdisjoint(both))
    return len(invented) == 1 or (slot == "place" and bool(invented))


def _relation(slot: str, premise: str | None, hypothesis: str | None) -> str:
    """The label of two values of one slot, "" if unclear. "not X" denies X; None is a slot that is not mentioned."""
    if premise is None or hypothesis is None:
        return ENTAILMENT if hypothesis is None else NEUTRAL
    tree, p, h = SLOTS[slot], premise.removeprefix("not "), hypothesis.removeprefix("not ")
    if p not in tree[h] and h not in tree[p] and _unclear(slot, p, h):
        return ""
    if p != premise:  # a denial denies all that lies below it
        return NEUTRAL if p not in tree[h] else CONTRADICTION if h == hypothesis else ENTAILMENT
    label = ENTAILMENT if h in tree[p] else NEUTRAL if p in tree[h] else CONTRADICTION
    return {ENTAILMENT: CONTRADICTION, CONTRADICTION: ENTAILMENT}.get(label, label) if h != hypothesis else label


def _sensible(scene: Scene) -> bool:
    kinds, places = KINDS.get(scene.get("kind", ""), []), PLACES.get(scene.get("place", ""), [])
    activity = scene.get("activity", "")
    done = ACTIVITIES.get(activity.removeprefix("not "), [])
    denied_place = places and activity.startswith("not ")  # "not sleeping in the park" may deny the place alone
    if not kinds or denied_place or ("indoors" in places and not OUTDOOR.isdisjoint(done)):
        return False
    return "animal" not in kinds or not done or done[0] in FOR_ANIMALS or "moving" in done


@cache
def _options(slot: str, hypothesis: str | None, label: str, denials: bool) -> list[str]:
    """The values of a premise that stand in relation `label` to the hypothesis's."""
    values = [*SLOTS[slot], *(f"not {value}" for value in SLOTS[slot] if denials and slot == "activity")]
    return [value for value in values if _relation(slot, value, hypothesis) == label]


def _draw_hypothesis(rng: random.Random) -> Scene:
    """A scene that some premise entails, another contradicts, and a third leaves open."""
    while True:
        scene = {slot: _pick(rng, list(SLOTS[slot])) for slot in SLOTS if rng.random() < HYPOTHESIS_ODDS[slot]}
        if rng.random() < 0.12 and "activity" in scene:
            scene["activity"] = f"not {scene['activity']}"
        if ("activity" in scene or "place" in scene) and _sensible(scene):
            return scene


def _draw_premise(rng: random.Random, hypothesis: Scene, label: str) -> Scene:
    """A scene that stands in relation `label` to the hypothesis; singular and plural are not mixed."""
    while True:
        premise: Scene = {}
        first = _pick(rng, list(hypothesis))
        turned = {slot for slot in hypothesis if slot == first or rng.random() < 0.4}  # these slots give the label
        for slot in SLOTS:
            stated = hypothesis.get(slot)
            denials = stated is not None and rng.random() < 0.2
            options = _options(slot, stated, label if slot in turned else ENTAILMENT, denials)
            if rng.random() >= PREMISE_ODDS[slot] if stated is None else label == NEUTRAL and rng.random() < 0.2:
                continue
            if stated and (slot not in turned or label == ENTAILMENT) and rng.random() < 0.5:
                options = [stated]  # the same value, often in the same words
            if options:
                premise[slot] = _pick(rng, options)
        found = {_relation(slot, premise.get(slot), hypothesis.get(slot)) for slot in SLOTS}
        same_number = ("number" in premise) == ("number" in hypothesis)
        if same_number and label == min(found, key=(CONTRADICTION, NEUTRAL, ENTAILMENT).index) and _sensible(premise):
            return premise


def _words(rng: random.Random, scene: Scene, invented: dict[str, list[str]]) -> list[str]:
    """The words of a caption, each value in one of its wordings; `invented` has two words for each slot."""

    def say(slot: str) -> str:
        value = scene.get(slot, "")
        wording = WORDING.get(value.removeprefix("not "), [""])
        words = _pick(rng, [*wording, wording[0]])  # the first most often
        words = words.replace("@", invented[slot][0]).replace("#", invented[slot][1])
        return words if not value.startswith("not ") else "awake" if value == "not sleeping" else f"not {words}"

    noun, be = say("kind"), "is"
    article = "the" if rng.random() < 0.2 else "a"
    if "number" in scene:
        noun, be, article = PLURALS.get(noun, f"{noun}s"), "are", say("number")
    subject = f"{say('quality')} {noun}".strip()
    if article == "a" and subject[0] in "aeiou":
        article = "an"
    words = " ".join((article, subject, be, say("activity"), say("place"))).split()
    words = words if words[-1] != be else ["there", be, *words[:-1]]
    return [words[0].capitalize(), *words[1:], "."]


def _pairs(seed: int, split: str, count: int) -> Iterator[tuple[str, list[str], list[str]]]:
    """`count` different pairs as (label, words of the premise, words of the hypothesis)."""
    rng = random.Random(3 * seed + ("train", "dev", "test").index(split))
    seen: set[str] = set()
    label = _pick(rng, LABELS)
    for _ in range(20 * count + 1000):
        if len(seen) == count:
            return
        hypothesis = _draw_hypothesis(rng)
        premise = _draw_premise(rng, hypothesis, label)
        invented = {slot: [_invented_word(rng), _invented_word(rng)] for slot in SLOTS}
        pair = _words(rng, premise, invented), _words(rng, hypothesis, invented)
        # The premise alone decides the split, so that no two splits share one, whatever the seed.
        bucket = ("train", "train", "dev", "test")[zlib.crc32(" ".join(pair[0]).encode()) % 4]
        if bucket == split and str(pair) not in seen:
            seen.add(str(pair))
            yield label, *pair
            label = _pick(rng, LABELS)
    raise ValueError(f"{split}={count}: the grammar has about {len(seen)} different pairs; ask for fewer")


def _columns(words: list[str]) -> tuple[str, str, str]:
    """The binary parse (each word with all that follow), the parse (one flat phrase), the sentence."""
    binary = "".join(f"( {word} " for word in words[:-1]) + words[-1] + " )" * (len(words) - 1)
    return binary, f"(ROOT {' '.join(f'(X {word})' for word in words)})", " ".join(words[:-1]) + words[-1]


def write_demo_corpus(
    folder: str | os.PathLike[str], seed: int = 0, train: int = 40000, dev: int = 1500, test: int = 1500
) -> Path:
    """Write `snli_1.0_{train,dev,test}.txt` in SNLI's layout, and return `folder`.

    seed               seed of the draws, at least 0 (default: 0)
    train, dev, test   pairs of each file (default: 40000, 1500, 1500)

    Equal arguments give equal bytes. The labels are nearly balanced, no premise is in two splits, and no pair occurs
    twice. Raises ValueError for a negative argument, and for a size beyond the grammar's.
    """
    sizes = {"train": train, "dev": dev, "test": test}
    for name, value in {"seed": seed, **sizes}.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative; found {value}")
    for split, count in sizes.items():
        lines = [HEADER]
        for i, (label, *pair) in enumerate(_pairs(seed, split, count)):
            texts = [text for columns in zip(*map(_columns, pair), strict=True) for text in columns]
            name = f"demo-{split}-{i}"
            lines.append("\t".join([label, *texts, name, f"{name}r1{label[0]}", label, "", "", "", ""]))
        with atomic_path(Path(folder) / f"snli_1.0_{split}.txt") as part:
            part.write_bytes(("\n".join(lines) + "\n").encode())
    return Path(folder)

"""A small NLI corpus from a grammar of captions, so that the demo needs no download.

A caption describes a scene, and a scene is a set of slots: who, how many, in what clothes, doing what, where, when. The
values of a slot form a tree whose root says least ("not mentioned") and whose siblings exclude each other:

    None -> eating fruit -> eating an apple          None -> outdoors -> in the park
                         -> eating a banana               -> indoors  -> in the kitchen

So a premise's value p and a hypothesis's value h stand in one of three relations: p is h or lies below it (entailment),
p lies above h (neutral: not stated), or neither (contradiction). A pair is a contradiction if any slot is, else neutral
if any slot is, else an entailment.

The hypothesis is drawn first, without looking at the label; then a premise is drawn which gives that label. A
hypothesis therefore says nothing about its label, and only a model that compares the two sentences can learn it.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from bertnli.data.files import atomic_path

T = TypeVar("T")
Tree = dict[str | None, "str | None"]  # value to parent; the root is its own parent
Scene = dict[str, str | None]
Caption = tuple[list[str], list[str]]  # phrases of the subject and of the predicate
Pair = tuple[Caption, Caption]  # premise, hypothesis

ENTAILMENT, CONTRADICTION, NEUTRAL = LABELS = ("entailment", "contradiction", "neutral")
HEADER = ["gold_label"]
HEADER += ["sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse"]
HEADER += ["sentence1", "sentence2", "captionID", "pairID", "label1", "label2", "label3", "label4", "label5"]


def _tree(root: str | None, branches: dict[str, str]) -> Tree:
    """A tree of two levels below `root`: `branches` maps a value to those below it, separated by commas."""
    tree: Tree = {root: root}
    for branch, leaves in branches.items():
        tree[branch] = root
        tree |= {leaf: branch for leaf in leaves.split(", ") if leaf}
    return tree


def _deepen(tree: Tree, branches: dict[str, str]) -> Tree:
    return tree | {leaf: branch for branch, leaves in branches.items() for leaf in leaves.split(", ")}


PEOPLE = _deepen(
    _tree("person", {"adult": "man, woman", "child": "boy, girl"}),
    {
        "man": "policeman, fisherman, waiter",
        "woman": "policewoman, waitress, actress",
        "boy": "schoolboy",
        "girl": "schoolgirl",
    },
)
ANIMALS = _tree(
    "animal",
    {
        "dog": "poodle, beagle, terrier",
        "cat": "siamese, tabby",
        "horse": "pony, stallion",
        "bird": "parrot, crow, duck",
    },
)
DOING = _tree(
    None,
    {
        "eating fruit": "eating an apple, eating a banana, eating a pear",
        "having a drink": "drinking coffee, drinking tea, drinking juice",
        "playing an instrument": "playing the guitar, playing the piano, playing the violin",
        "playing a sport": "playing football, playing tennis, playing basketball",
        "reading": "reading a book, reading a newspaper, reading a letter",
        "riding": "riding a bicycle, riding a motorcycle, riding a scooter",
        "carrying something": "carrying a bag, carrying a box, carrying a ladder",
        "sleeping": "",
        "dancing": "",
        "cooking": "",
        "painting a wall": "",
        "kneeling": "",
    },
)
ANIMALS_DOING = _tree(
    None,
    {
        "sleeping": "",
        "moving": "running, walking, jumping",
        "eating": "eating grass, eating meat, eating bread",
        "drinking water": "",
        "standing still": "",
        "holding a stick": "",
    },
)
PLACES = _tree(
    None,
    {
        "outdoors": "in the park, on the beach, in the street, along the river",
        "indoors": "in the kitchen, in the library, in the shop, at the station",
    },
)
TIMES = _tree(None, {"in the morning": "", "at noon": "", "in the evening": "", "at night": ""})
AIMS = _tree(None, {"for money": "", "for a contest": "", "with a friend": ""})
NUMBERS = _tree("some", {"two": "", "three": "", "four": "", "five": ""})
AGES = _tree(None, {"young": "", "old": ""})
HEIGHTS = _tree(None, {"tall": "", "short": ""})
SIZES = _tree(None, {"big": "", "small": ""})
FURS = _tree(None, {"black": "", "white": "", "brown": "", "gray": ""})
WORN = _tree(None, {"without": "", "in": "red, blue, green, yellow, black"})
CLOTHES = ("coat", "hat", "scarf")
DEEDS = _tree(None, dict.fromkeys(("chasing", "hugging", "pushing", "helping"), ""))

PEOPLE_SLOTS: dict[str, Tree] = {
    "kind": PEOPLE,
    "number": NUMBERS,
    "age": AGES,
    "height": HEIGHTS,
    **dict.fromkeys(CLOTHES, WORN),
    "doing": DOING,
    "place": PLACES,
    "time": TIMES,
    "aim": AIMS,
}
ANIMAL_SLOTS: dict[str, Tree] = {
    "kind": ANIMALS,
    "number": NUMBERS,
    "size": SIZES,
    "fur": FURS,
    "doing": ANIMALS_DOING,
    "place": PLACES,
    "time": TIMES,
}
OUTDOOR = ("riding", "playing a sport")  # never with a place indoors
PLURALS = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "policeman": "policemen",
    "policewoman": "policewomen",
    "fisherman": "fishermen",
    "waitress": "waitresses",
    "actress": "actresses",
    "siamese": "siamese",
    "tabby": "tabbies",
    "pony": "ponies",
    "scarf": "scarves",
}


class _Dice:
    """Draws that are the same in every version of Python: `random.Random.random` alone is promised to be."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def pick(self, values: Sequence[T]) -> T:
        return values[int(self._random() * len(values))]

    def some(self, values: Sequence[T], count: int) -> list[T]:
        """`count` different values, in their given order."""
        left = list(range(len(values)))
        while len(left) > count:
            left.pop(int(self._random() * len(left)))
        return [values[i] for i in left]


def _above(tree: Tree, value: str | None) -> list[str | None]:
    """`value` and all that it implies, up to the root."""
    path = [value]
    while tree[path[-1]] != path[-1]:
        path.append(tree[path[-1]])
    return path


def _relation(tree: Tree, premise: str | None, hypothesis: str | None) -> str:
    if hypothesis in _above(tree, premise):
        return ENTAILMENT
    return NEUTRAL if premise in _above(tree, hypothesis) else CONTRADICTION


_options_cache: dict[tuple[int, str | None, str], list[str | None]] = {}


def _options(tree: Tree, hypothesis: str | None, label: str) -> list[str | None]:
    """The premise's values that stand in relation `label` to `hypothesis`."""
    key = (id(tree), hypothesis, label)
    if key not in _options_cache:
        _options_cache[key] = [value for value in tree if _relation(tree, value, hypothesis) == label]
    return _options_cache[key]


# --- captions ---------------------------------------------------------------------------------------------------------


def _article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _plural(noun: str) -> str:
    return PLURALS.get(noun, f"{noun}s")


def _noun_phrase(scene: Scene) -> str:
    adjectives = [scene[slot] for slot in ("size", "height", "age", "fur") if scene.get(slot)]
    number, kind = scene.get("number"), scene["kind"]
    assert kind is not None
    words = " ".join(filter(None, [*adjectives, _plural(kind) if number else kind]))
    return f"{number} {words}" if number else _article(words)


def _clothes(scene: Scene) -> list[str]:
    """["in a red coat", "and a blue scarf"], or ["in red coats"] for more than one wearer."""
    phrases: list[str] = []
    last = ""
    for noun in CLOTHES:
        worn = scene.get(noun)
        if worn is None:
            continue
        thing = f"{'' if worn in ('in', 'without') else worn} {_plural(noun) if scene.get('number') else noun}".strip()
        thing = thing if scene.get("number") else _article(thing)
        preposition = "without" if worn == "without" else "in"
        joined = f"and {preposition}" if phrases and preposition != last else "and" if phrases else preposition
        phrases.append(f"{joined} {thing}")
        last = preposition
    return phrases


def _caption(scene: Scene) -> Caption:
    subject = [_noun_phrase(scene), *_clothes(scene)]
    be = "are" if scene.get("number") else "is"
    adjuncts = [scene[slot] or "" for slot in ("place", "time", "aim") if scene.get(slot)]
    doing = scene.get("doing")
    if doing:
        return subject, [be, *(["not"] if scene.get("not") else []), doing, *adjuncts]
    if scene.get("place"):
        return subject, [be, *adjuncts]
    return ["there"], [be, *subject, *adjuncts]


# --- pairs: each template draws a hypothesis, then a premise that gives it the label ----------------------------------


def _sensible(scene: Scene, slots: dict[str, Tree]) -> bool:
    doing, place, kind = scene.get("doing"), scene.get("place"), scene["kind"]
    if scene.get("age") and "child" in _above(slots["kind"], kind):
        return False
    if scene.get("aim") and not doing:
        return False
    if scene.get("not") and any(scene.get(slot) for slot in ("place", "time", "aim")):
        return False  # "not sleeping in the park" does not say which of the two is denied
    indoors = "indoors" in _above(PLACES, place)
    return not (indoors and doing in DOING and any(act in _above(DOING, doing) for act in OUTDOOR))


def _add_details(dice: _Dice, scene: Scene, slots: dict[str, Tree], count: int) -> None:
    """Mention up to `count` more slots of `scene`, of those that may be absent."""
    free = [slot for slot, tree in slots.items() if None in tree and not scene.get(slot)]
    for slot in dice.some(free, count):
        scene[slot] = dice.pick([value for value in slots[slot] if value])


def _draw_scene(dice: _Dice, slots: dict[str, Tree]) -> Scene:
    while True:
        scene: Scene = {"kind": dice.pick(list(slots["kind"]))}
        if dice.chance(0.25):
            scene["number"] = dice.pick(list(NUMBERS))
        if dice.chance(0.7):
            scene["doing"] = dice.pick([value for value in slots["doing"] if value])
            if dice.chance(0.15):
                scene["not"] = "not"
        _add_details(dice, scene, slots, dice.pick((0, 0, 1, 1, 2) if scene.get("doing") else (1, 1, 2)))
        if _sensible(scene, slots):
            return scene


def _implying(dice: _Dice, tree: Tree, value: str | None) -> str | None:
    """A premise's value from which `value` follows: most often itself."""
    return dice.pick(_options(tree, value, ENTAILMENT)) if dice.chance(0.3) else value


def _scene_pair(dice: _Dice, label: str, slots: dict[str, Tree]) -> Pair | None:
    hypothesis = _draw_scene(dice, slots)
    stated = [slot for slot in slots if hypothesis.get(slot)]
    denied = hypothesis.get("not") is not None
    turnable = {
        wanted: [
            slot
            for slot in stated
            if _options(slots[slot], hypothesis[slot], wanted)
            and not (slot == "aim" and wanted == CONTRADICTION)  # one may have two aims
        ]
        for wanted in LABELS
    }
    if not all(turnable.values()):
        return None  # a hypothesis is used only if it can have every label
    swap = [slot for slot in CLOTHES if hypothesis.get(slot) not in (None, "in", "without")]
    for _ in range(50):
        turned: list[str] = []  # the slots that stand in relation `label`; all others are entailed
        if label != ENTAILMENT:
            first = dice.pick(turnable[label])
            turned = [slot for slot in turnable[label] if slot == first or dice.chance(0.6)]
        premise: Scene = {}
        for slot in stated:
            wanted = label if slot in turned else ENTAILMENT
            if slot == "doing" and denied:
                # To deny is to turn the relation round: doing something else entails it, doing that contradicts it.
                wanted = {ENTAILMENT: CONTRADICTION, CONTRADICTION: ENTAILMENT}.get(wanted, wanted)
            if wanted == ENTAILMENT:
                premise[slot] = _implying(dice, slots[slot], hypothesis[slot])
            else:
                premise[slot] = dice.pick(_options(slots[slot], hypothesis[slot], wanted))
        if label == CONTRADICTION and len(swap) == 2 and dice.chance(0.7):
            premise |= {swap[0]: hypothesis[swap[1]], swap[1]: hypothesis[swap[0]]}
            if hypothesis[swap[0]] == hypothesis[swap[1]]:
                continue
        if "doing" in turned and label == CONTRADICTION and not denied and dice.chance(0.3):
            premise |= {"doing": hypothesis["doing"], "not": "not"}
        if "doing" in stated and "doing" not in turned and denied and dice.chance(0.3):
            premise |= {"doing": hypothesis["doing"], "not": "not"}
        unstated = {slot: tree for slot, tree in slots.items() if slot not in stated}
        _add_details(dice, premise, unstated, dice.pick((0, 0, 1)))
        if _sensible(premise, slots):
            return _caption(premise), _caption(hypothesis)
    return None


def _people_pair(dice: _Dice, label: str) -> Pair | None:
    return _scene_pair(dice, label, PEOPLE_SLOTS)


def _animal_pair(dice: _Dice, label: str) -> Pair | None:
    return _scene_pair(dice, label, ANIMAL_SLOTS)


def _exclusive_kinds(dice: _Dice, tree: Tree) -> tuple[str, str]:
    """Two kinds below the root, of which nothing can be both."""
    while True:
        first, second = (dice.pick([kind for kind, above in tree.items() if kind and above != kind]) for _ in range(2))
        if _relation(tree, first, second) == CONTRADICTION:
            return first, second


def _setting(dice: _Dice) -> list[str]:
    """No, one or two of a place and a time."""
    return [dice.pick([value for value in tree if value]) for tree in (PLACES, TIMES) if dice.chance(0.35)]


def _below(dice: _Dice, tree: Tree, kind: str) -> str:
    found = dice.pick(_options(tree, kind, ENTAILMENT)) if dice.chance(0.3) else kind
    assert found is not None
    return found


def _role_pair(dice: _Dice, label: str) -> Pair | None:
    """Who does it to whom: "the boy is chasing the girl" and "the girl is chasing the boy"."""
    tree = dice.pick((PEOPLE, PEOPLE, ANIMALS))
    agent, patient = _exclusive_kinds(dice, tree)
    deed = dice.pick([value for value in DEEDS if value])
    hypothesis = [f"the {agent}"], ["is", deed, f"the {patient}"]
    first, second, done = _below(dice, tree, agent), _below(dice, tree, patient), deed
    if label == CONTRADICTION:
        if dice.chance(0.7):
            first, second = second, first
        else:
            done = dice.pick([value for value in DEEDS if value and value != deed])
    elif label == NEUTRAL:
        if dice.chance(0.7):
            return ([f"the {first}", f"and the {second}"], ["are", *(_setting(dice) or ["outdoors"])]), hypothesis
        first = dice.pick([kind for kind in _options(tree, agent, NEUTRAL) if kind])
    return ([f"the {first}"], ["is", done, f"the {second}", *_setting(dice)]), hypothesis


def _wearer_pair(dice: _Dice, label: str) -> Pair | None:
    """Which of two wears what: "a man in a red coat is next to a woman in a blue coat", and the colours swapped."""
    first, second = _exclusive_kinds(dice, PEOPLE)
    noun = dice.pick(CLOTHES)
    red, blue = dice.some([value for value in WORN if value not in (None, "in", "without")], 2)
    if dice.chance(0.5):
        red, blue = blue, red

    def caption(one: str, its: str | None, other: str, others: str | None, setting: list[str]) -> Caption:
        left, right = _clothes({noun: its}), _clothes({noun: others})
        return [_article(one), *left], ["is", "next to", _article(other), *right, *setting]

    hypothesis = caption(first, red, second, blue, [])
    colours: list[str | None] = [red, blue]
    if label == CONTRADICTION and dice.chance(0.7):
        colours = [blue, red]
    elif label != ENTAILMENT:
        which = dice.pick((0, 1))
        colours[which] = dice.pick(_options(WORN, colours[which], label))
    setting = _setting(dice)
    return caption(
        _below(dice, PEOPLE, first), colours[0], _below(dice, PEOPLE, second), colours[1], setting
    ), hypothesis


def _quantifier_pair(dice: _Dice, label: str) -> Pair | None:
    """All, some or none of a group."""
    kinds, doings = dice.pick(((PEOPLE, DOING), (ANIMALS, ANIMALS_DOING)))
    kind = dice.pick([kind for kind, above in kinds.items() if kind and above != kind])
    doing = dice.pick([value for value in doings if value])
    quantifier = dice.pick(("all", "some", "none"))

    def caption(quantifier: str, kind: str | None, doing: str | None, setting: Sequence[str] = ()) -> Caption:
        return [quantifier, f"of the {_plural(kind or '')}"], ["are", doing or "", *setting]

    other = dice.pick(_options(doings, doing, CONTRADICTION))
    same = dice.pick(_options(doings, doing, ENTAILMENT))
    setting = _setting(dice)
    if quantifier == "none":
        drawn = {
            ENTAILMENT: lambda: (
                caption("all", kind, other, setting) if dice.chance(0.3) else caption("none", kind, doing)
            ),
            CONTRADICTION: lambda: caption(dice.pick(("all", "some")), kind, same, setting),
            NEUTRAL: lambda: caption("none", kind, doing, setting or ["outdoors"]),
        }
    elif quantifier == "all":
        drawn = {
            ENTAILMENT: lambda: caption("all", kind, same, setting),
            CONTRADICTION: lambda: (
                caption("none", kind, doing) if dice.chance(0.6) else caption("all", kind, other, setting)
            ),
            NEUTRAL: lambda: caption("some", kind, same, setting),
        }
    else:
        above = [kind for kind in _options(kinds, kind, NEUTRAL) if kind]
        drawn = {
            ENTAILMENT: lambda: caption(dice.pick(("all", "some")), kind, same, setting),
            CONTRADICTION: lambda: (
                caption("none", kind, doing) if dice.chance(0.6) else caption("all", kind, other, setting)
            ),
            NEUTRAL: lambda: caption("some", dice.pick(above), same, setting),
        }
    return drawn[label](), caption(quantifier, kind, doing)


TEMPLATES: tuple[Callable[[_Dice, str], Pair | None], ...] = (
    *(_people_pair,) * 10,
    *(_animal_pair,) * 6,
    _role_pair,
    _wearer_pair,
    *(_quantifier_pair,) * 2,
)


# --- SNLI's layout ----------------------------------------------------------------------------------------------------


def _words(caption: Caption) -> list[str]:
    words = " ".join((*caption[0], *caption[1], ".")).split()
    return [words[0].capitalize(), *words[1:]]


def _binary_parse(caption: Caption) -> str:
    def nest(parts: list[str]) -> str:
        return parts[0] if len(parts) == 1 else f"( {parts[0]} {nest(parts[1:])} )"

    subject, predicate = ([nest(phrase.split()) for phrase in phrases] for phrases in caption)
    subject[0] = _capital(subject[0])
    return f"( {nest(subject)} ( {nest(predicate)} . ) )"


def _parse(caption: Caption) -> str:
    subject, predicate = (" ".join(f"(X {word})" for word in " ".join(part).split()) for part in caption)
    return f"(ROOT (S (NP {_capital(subject)}) (VP {predicate}) (. .)))"


def _capital(text: str) -> str:
    """`text` with its first word capitalised, brackets skipped."""
    i = next(i for i, letter in enumerate(text) if letter.islower())
    return text[:i] + text[i].upper() + text[i + 1 :]


def _sentence(caption: Caption) -> str:
    return " ".join(_words(caption)[:-1]) + "."


def _bucket(premise: str) -> str:
    """The split that a premise belongs to, whatever the seed: so no two splits share one."""
    return ("train", "train", "dev", "test")[zlib.crc32(premise.encode()) % 4]


def _pairs(seed: int, split: str, count: int) -> Iterator[tuple[str, Caption, Caption]]:
    """`count` different pairs as (label, premise, hypothesis)."""
    dice = _Dice(3 * seed + ("train", "dev", "test").index(split))
    seen: set[tuple[str, str]] = set()
    while len(seen) < count:
        label = dice.pick(LABELS)
        for _ in range(1000):
            pair = dice.pick(TEMPLATES)(dice, label)
            if pair is None:
                continue
            texts = _sentence(pair[0]), _sentence(pair[1])
            if texts not in seen and _bucket(texts[0]) == split:
                break
        else:
            raise ValueError(
                f"{split}={count}: the grammar has no more than about {len(seen)} different pairs; ask for fewer"
            )
        seen.add(texts)
        yield label, *pair


def write_demo_corpus(
    folder: str | os.PathLike[str], seed: int = 0, train: int = 20000, dev: int = 1500, test: int = 1500
) -> Path:
    """Write `snli_1.0_{train,dev,test}.txt` of `train`, `dev` and `test` pairs in SNLI's layout; return `folder`.

    The bytes depend on nothing but the arguments. The labels are near balanced, no premise occurs in two splits, and
    no pair twice. Raises ValueError for a negative seed or size, and for a size beyond what the grammar can make.
    """
    sizes = {"train": train, "dev": dev, "test": test}
    for name, value in {"seed": seed, **sizes}.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative; found {value}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in sizes.items():
        lines = ["\t".join(HEADER)]
        for row, (label, premise, hypothesis) in enumerate(_pairs(seed, split, count)):
            caption_id = f"demo-{split}-{row}"
            columns = [f(caption) for f in (_binary_parse, _parse, _sentence) for caption in (premise, hypothesis)]
            lines.append("\t".join([label, *columns, caption_id, f"{caption_id}r1{label[0]}", label, "", "", "", ""]))
        path = folder / f"snli_1.0_{split}.txt"
        with atomic_path(path) as part:
            part.write_bytes(("\n".join(lines) + "\n").encode())
    return folder

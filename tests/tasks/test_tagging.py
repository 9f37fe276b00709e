"""Words to rows of pieces, and tags to entities."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from pathlib import Path

import pytest
import torch

from bertnli import BERTConfig, BERTModel, BERTTagger, WordData, WordPieceTokenizer, evaluate, fit, predict, read_conll
from bertnli.tasks.tagging import NOT_READ, encode_words, entities_of, entity_metrics

PIECES = [*WordPieceTokenizer.SPECIAL, "the", "dog", "run", "##s", "##ning", "-", "a", "##a", "pa", "##ris"]


def test_rows_are_those_of_transformers(data_dir: Path, minilm_dir: Path) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(minilm_dir)
    ours = WordPieceTokenizer.from_file(minilm_dir / "tokenizer.json")
    data = read_conll(data_dir / "wnut17" / "emerging.dev.conll")[:400]
    assert data.tags is not None
    encoded = encode_words(ours, data, 512)
    found = theirs(list(map(list, data.sentences)), is_split_into_words=True, max_length=512, truncation=True)
    assert len(encoded.encoded) == len(data)
    labels = encoded.encoded.labels
    assert labels is not None
    compared = 0
    for i, (words, tags) in enumerate(zip(data.sentences, data.tags, strict=True)):
        ids = found.word_ids(i)
        if {w for w in ids if w is not None} != set(range(len(words))):
            continue  # transformers lost a word of which no piece is left
        low, high = encoded.encoded.offsets[i], encoded.encoded.offsets[i + 1]
        assert encoded.encoded.ids[low:high].tolist() == found["input_ids"][i]
        wanted = [NOT_READ if w is None or w == ids[j - 1] else tags[w] for j, w in enumerate(ids)]
        assert labels[low:high].tolist() == wanted
        compared += 1
    assert compared > 350


@pytest.mark.parametrize("max_len", [3, 4, 5, 7, 16])
def test_no_word_is_lost(max_len: int) -> None:
    """Whatever the length of rows: each word is read once, in order, at its first piece, and rows are not too long."""
    rng = random.Random(max_len)
    words = ["the", "dog", "runs", "running", "zebra", "run-dog", "\u200d", "", "aaaaaaaaaaaa", "paris"]
    tokenizer = WordPieceTokenizer(PIECES)
    sentences = [rng.choices(words, k=rng.choice([0, 1, 2, 5, 30])) for _ in range(60)]
    tags = [[rng.randrange(3) for _ in sentence] for sentence in sentences]
    encoded = encode_words(tokenizer, WordData(sentences, tags, ("a", "b", "c")), max_len)
    pairs, labels = encoded.encoded, encoded.encoded.labels
    assert labels is not None
    assert labels[labels != NOT_READ].tolist() == list(itertools.chain(*tags))
    assert encoded.words.tolist() == list(map(len, sentences))
    assert int(pairs.lengths.max()) <= max_len
    assert pairs.ids[pairs.offsets[:-1]].unique().tolist() == [tokenizer.cls_id]
    assert pairs.ids[pairs.offsets[1:] - 1].unique().tolist() == [tokenizer.sep_id]
    flat = list(itertools.chain(*sentences))
    first = [tokenizer.encode(word)[0] if tokenizer.encode(word) else tokenizer.unk_id for word in flat]
    assert pairs.ids[labels != NOT_READ].tolist() == first
    kept = sum(min(max(1, len(tokenizer.encode(word))), max_len - 2) for word in flat)
    assert len(pairs.ids) == kept + 2 * len(pairs)
    # Every row is as full as it can be: the next word of its sentence would not have fitted.
    assert len(pairs) >= len(sentences)
    with pytest.raises(ValueError, match="max_len must be at least 3"):
        encode_words(tokenizer, WordData(sentences, tags), 2)


def test_it_learns_tags_beyond_one_row() -> None:
    torch.manual_seed(0)
    rng = random.Random(0)
    words = {"the": "O", "dog": "B-x", "runs": "I-x", "paris": "B-y", "-": "O"}
    names = ("O", "B-x", "I-x", "B-y")
    sentences = [rng.choices(list(words), k=rng.randint(1, 20)) for _ in range(120)]
    data = WordData(sentences, [[names.index(words[w]) for w in s] for s in sentences], names)
    tokenizer = WordPieceTokenizer(PIECES)
    config = BERTConfig.original(
        len(PIECES), num_hiddens=24, ffn_num_hiddens=40, num_heads=3, num_layers=2, max_len=12, dropout=0.0
    )
    model = BERTTagger(BERTModel(config), 4, names)
    encoded = model.encode(tokenizer, data, 12)
    assert len(encoded.encoded) > len(data)
    history = fit(model, encoded, encoded, epochs=4, batch_size=8, lr=5e-3, progress=False)
    assert history.epochs[-1].metric == "f1"
    figures = evaluate(model, encoded)
    assert figures["accuracy"] == figures["f1"] == history.epochs[-1].dev_score == 1
    assert figures["words"] == sum(map(len, sentences))
    tags = predict(model, tokenizer, sentences)
    assert tags == [[words[w] for w in s] for s in sentences]
    assert predict(model, tokenizer, [[], ["paris"]]) == [[], ["B-y"]]
    for wrong in (["paris"], "paris"):
        with pytest.raises(TypeError, match="lists of words"):
            predict(model, tokenizer, wrong)


def test_accuracy_where_tags_are_no_entities() -> None:
    torch.manual_seed(0)
    config = BERTConfig.original(len(PIECES), num_hiddens=8, ffn_num_hiddens=8, num_heads=1, num_layers=1, max_len=12)
    model = BERTTagger(BERTModel(config), 2, ("NOUN", "VERB"))
    encoded = model.encode(WordPieceTokenizer(PIECES), WordData([["dog", "runs"]], [[0, 1]], ("NOUN", "VERB")))
    assert model.metric == "accuracy"
    assert BERTTagger(model, 2, ("O", "B-x")).metric == "f1"
    assert set(evaluate(model, encoded)) == {"examples", "loss", "words", "accuracy"}
    with pytest.raises(ValueError, match="the evaluated data has words without a tag"):
        evaluate(model, model.encode(WordPieceTokenizer(PIECES), WordData([["dog"]], None)))


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("O B-x I-x O", [("x", 1, 2)]),
        ("B-x B-x I-y I-y", [("x", 0, 0), ("x", 1, 1), ("y", 2, 3)]),
        ("I-x I-x O I-y", [("x", 0, 1), ("y", 3, 3)]),  # stray I begins one
        ("S-x E-x I-x B-x E-x E-x", [("x", 0, 0), ("x", 1, 1), ("x", 2, 2), ("x", 3, 4), ("x", 5, 5)]),
        ("B I O", [("_", 0, 1)]),
        ("", []),
    ],
)
def test_entities(tags: str, wanted: list[tuple[str, int, int]]) -> None:
    assert entities_of(tags.split()) == wanted


def test_entities_are_those_of_seqeval() -> None:
    """Of every sentence of up to four tags; the digest is of what seqeval 1.2.2's get_entities finds, as JSON."""
    tags = ["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("x", "y"))]
    found = [entities_of(row) for n in range(5) for row in itertools.product(tags, repeat=n)]
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    assert digest == "a9539806d26e3918e2e40f593467cc672b23cc5aa79d1f504665f665cfd68d00"


@pytest.mark.parametrize(
    ("seed", "precision", "recall", "f1", "per_type"),
    [
        (0, 0.73717949, 0.77181208, 0.75409836, {"x": 0.732673267, "y": 0.744186047, "z": 0.8}),
        (1, 0.72611465, 0.70370370, 0.71473354, {"x": 0.715596330, "y": 0.744186047, "z": 2 / 3}),
        (2, 0.72435897, 0.73856209, 0.73139159, {"x": 0.653846154, "y": 0.738461538, "z": 0.826666667}),
    ],
)  # fmt: skip
def test_figures_are_those_of_seqeval(
    seed: int, precision: float, recall: float, f1: float, per_type: dict[str, float]
) -> None:
    """Recorded from seqeval 1.2.2 on the same sentences."""
    rng = random.Random(seed)
    tags = ["O", "O", "B-x", "I-x", "B-y", "I-y", "B-z"]
    truth = [[rng.choice(tags) for _ in range(12)] for _ in range(20)]
    guess = [[rng.choice(tags) if rng.random() < 0.3 else tag for tag in row] for row in truth]
    figures = entity_metrics(truth, guess)
    assert [figures[name] for name in ("precision", "recall", "f1")] == pytest.approx([precision, recall, f1], abs=1e-8)
    assert {kind: row["f1"] for kind, row in figures["per_type"].items()} == pytest.approx(per_type, abs=1e-8)
    assert sum(row["support"] for row in figures["per_type"].values()) == figures["support"]


def test_figures_of_nothing() -> None:
    assert entity_metrics([["O"]], [["O"]]) == {"precision": 0, "recall": 0, "f1": 0, "support": 0, "per_type": {}}

"""A student from a teacher: its parts, its loss, and that it learns from what has no labels."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    BERTRegressor,
    Head,
    PackedBatch,
    QuestionData,
    TextData,
    Vocab,
    WordData,
    WordPieceTokenizer,
    WordTokenizer,
    fit,
    from_pretrained,
    save_pretrained,
    score,
)
from bertnli.cli import main
from bertnli.distillation.distill import _Pupil, distill, make_student, pruned_tokenizer
from bertnli.tasks.base import HEADS
from bertnli.text.encoded import encoded_texts

WORDS = ["red", "green", "blue", "one", "two", "three", "four", "five"]
PIECES = [*WordPieceTokenizer.SPECIAL, *WORDS, "##s", "never", "r", "##e", "##d"]
NAMES = ("none", "some")


def texts(n: int, seed: int = 0) -> TextData:
    """Pairs; the class is whether a colour of the first text returns in the second."""
    rng = random.Random(seed)
    first = [rng.choices(WORDS, k=4) for _ in range(n)]
    second = [rng.choices(WORDS, k=3) for _ in range(n)]
    labels = [int(bool({"red", "green", "blue"} & set(a) & set(b))) for a, b in zip(first, second, strict=True)]
    return TextData([" ".join(a) for a in first], [" ".join(b) for b in second], labels, NAMES)


def teacher(task: str = "classification", hidden: int = 64, dropout: float = 0.1) -> Head:
    torch.manual_seed(0)
    config = BERTConfig.original(
        len(PIECES), num_hiddens=hidden, ffn_num_hiddens=96, num_heads=2, num_layers=3, max_len=32, dropout=dropout
    )
    bert = BERTModel(config)
    return HEADS[task](bert, 2, NAMES) if task in ("classification", "tagging") else HEADS[task](bert)


def test_pruned_tokenizers() -> None:
    full = WordPieceTokenizer(PIECES)
    seen = ["red two", "greens red", "unheard"]
    small, ids = pruned_tokenizer(full, seen)
    assert [full.tokens[i] for i in ids] == small.tokens  # type: ignore[attr-defined]
    assert small.tokens == [  # type: ignore[attr-defined]
        *WordPieceTokenizer.SPECIAL, "red", "green", "two", "##s", "r", "##e", "##d",
    ]  # fmt: skip
    for text in (*seen, "red greens [SEP]"):
        assert small.tokenize(text) == full.tokenize(text)
    twice, _ = pruned_tokenizer(full, seen, 2)
    assert twice.tokenize("red two") == ["red", "[UNK]"]
    words = WordTokenizer(Vocab([WORDS], reserved_tokens=["<pad>", "<mask>", "<cls>", "<sep>"]))
    small, ids = pruned_tokenizer(words, ["Red two unheard"])
    assert [words.id_to_token(int(i)) for i in ids] == ["<unk>", "<pad>", "<mask>", "<cls>", "<sep>", "red", "two"]
    assert small.tokenize("red") == ["red"]
    assert ids[small.encode("two red five")].tolist() == [*words.encode("two red"), words.unk_id]


def test_a_student_of_teacher_layers_begins_as_the_teacher() -> None:
    """With all its layers and tokens it is the teacher; with some, those layers."""
    big = teacher().eval()
    full = WordPieceTokenizer(PIECES)
    same = make_student(big, torch.arange(len(PIECES)), num_hiddens=64, layers=[0, 1, 2], max_len=32).eval()
    data = texts(20)
    assert torch.equal(score(same, same.encode(full, data, 32)), score(big, big.encode(full, data, 32)))
    small, ids = pruned_tokenizer(full, [*data.first, *(data.second or ())])
    assert len(small) < len(full)
    same = make_student(big, ids, num_hiddens=64, layers=[0, 1, 2], max_len=32).eval()
    torch.testing.assert_close(score(same, same.encode(small, data, 32)), score(big, big.encode(full, data, 32)))
    some = make_student(big, ids, num_hiddens=64, layers=[2], max_len=32)
    assert torch.equal(some.encoder.blks[0].ffn.dense1.weight, big.encoder.blks[2].ffn.dense1.weight)
    for width, layer, message in ((32, 0, "narrower than the teacher's need a sample"), (96, 0, "cannot be 96 wide"),
                                  (64, 3, "layers 0 to 2, not 3"), (16, 0, "cannot be 16 wide")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make_student(big, ids, num_hiddens=width, layers=[layer])
    rows, same = (
        big.encode(full, data),
        make_student(big, ids, num_hiddens=64, layers=[2, 0], num_layers=2, num_heads=2),
    )
    assert same.config == replace(big.config, num_layers=2, pretraining_heads=False, vocab_size=len(ids))
    for asked, message in ((dict(num_layers=4), "num_layers=4 does not go with .* which ask for 1"),
                           (dict(num_heads=1), "num_heads=1 .* ask for 2"), (dict(ffn_num_hiddens=64), "ask for 96"),
                           (dict(num_hiddens=32, ffn_num_hiddens=128), "ask for at most 96")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make_student(big, ids, **{"num_hiddens": 64, "layers": [1], "sample": rows, **asked})


def test_narrow_layers_of_a_teacher_that_is_no_richer() -> None:
    """A teacher that says everything twice has a student of half its width that says the same."""
    torch.manual_seed(0)
    full, data = WordPieceTokenizer(PIECES), texts(300)
    sizes: dict[str, Any] = dict(ffn_num_hiddens=24, num_layers=2, max_len=32)
    single = BERTModel(BERTConfig.original(len(PIECES), num_hiddens=16, num_heads=1, **sizes))
    twice = BERTModel(BERTConfig.original(len(PIECES), num_hiddens=32, num_heads=2, **sizes))
    with torch.no_grad():
        for name, value in single.state_dict().items():
            if name.startswith("encoder.") and "weight" in name and value.dim() == 2 and "embedding" not in name:
                value = value * 8  # attention and units that matter
                if "dense1" not in name:
                    value = torch.cat([value, value])
                if "dense2" not in name:
                    value = torch.cat([value, value], 1) / 2
                twice.state_dict()[name].copy_(value)
            elif name.startswith("encoder."):
                wanted = twice.state_dict()[name]
                wanted.copy_(value if value.shape == wanted.shape else torch.cat([value, value], -1))
    big = BERTClassifier(twice, 2, NAMES)
    rows = big.encode(full, data, 32)
    ids = torch.arange(len(PIECES))
    small = make_student(big, ids, num_hiddens=16, ffn_num_hiddens=24, layers=[0, 1], sample=rows, max_len=32)
    assert small.training
    assert big.training
    other = make_student(big, ids, num_hiddens=16, ffn_num_hiddens=24, num_layers=2, max_len=32)
    wanted, *found = (head.eval().features(rows.batch(range(300))).detach() for head in (big, small, other))
    apart = []
    for features in found:
        features, target = features - features.mean(0), wanted - wanted.mean(0)
        nearest = features @ torch.linalg.lstsq(features, target).solution
        apart.append(float((nearest - target).norm() / target.norm()))
    assert apart[0] < 0.02, apart
    assert apart[1] > 0.2, apart


def test_narrow_embeddings_keep_the_teachers_geometry() -> None:
    """In as many dimensions as the embeddings really have, distances are the teacher's, but for one factor."""
    big = teacher()
    with torch.no_grad():
        table = big.encoder.token_embedding.weight
        table.copy_(torch.randn(len(PIECES), 6) @ torch.randn(6, 64) * 0.02)
    small = make_student(big, torch.arange(len(PIECES)), num_hiddens=32)
    table, narrow = table.detach(), small.encoder.token_embedding.weight.detach()
    ratio = torch.pdist(narrow) / torch.pdist(table)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    assert float(narrow.std()) == pytest.approx(float((table - table.mean(0)).std()), rel=1e-4)


def words(n: int, seed: int = 0) -> WordData:
    """Sentences whose colours are tagged."""
    rng = random.Random(seed)
    sentences = [rng.choices(WORDS, k=rng.randint(0, 6)) for _ in range(n)]
    tags = [[int(word in WORDS[:3]) for word in sentence] for sentence in sentences]
    return WordData(sentences, tags, NAMES)


def questions(n: int, seed: int = 0) -> QuestionData:
    """Which word stands after that of the question?"""
    rng = random.Random(seed)
    contexts = [rng.sample(WORDS, k=rng.randint(3, 8)) for _ in range(n)]
    places = [rng.randrange(1, len(context)) for context in contexts]
    answers = [[(len(" ".join(c[:i])) + 1, c[i])] for c, i in zip(contexts, places, strict=True)]
    asked = [c[i - 1] for c, i in zip(contexts, places, strict=True)]
    ids = [str(i) for i in range(n)]
    return QuestionData(asked, [" ".join(c) for c in contexts], answers, ids, ids)


def scores(n: int, seed: int = 0) -> TextData:
    """The pairs again, with reals for classes."""
    data = texts(n, seed)
    return replace(data, labels=[0.5 * label for label in data.labels or ()], label_names=())


# Of each task its examples, and the same without what is to be learnt.
TASKS: dict[str, Any] = {
    "classification": (texts, lambda data: TextData.of(data.first, data.second)),
    "regression": (scores, lambda data: TextData.of(data.first, data.second)),
    "tagging": (words, lambda data: WordData(data.sentences, None)),
    "qa": (questions, lambda data: replace(data, answers=None)),
}


def divergence(target: torch.Tensor, score: torch.Tensor, temperature: float) -> float:
    """Kullback and Leibler's, of the probabilities at the temperature, times its square."""
    p, q = (target / temperature).softmax(-1), (score / temperature).softmax(-1)
    return temperature**2 * float((p * (p / q).log()).sum())


@pytest.mark.parametrize("task", TASKS)
@torch.no_grad()
def test_the_loss(task: str) -> None:
    """Of each example by itself: its own loss where it has a label, the outputs' distance, the vectors'."""
    torch.manual_seed(1)
    make, without = TASKS[task]
    big, full, data, more = teacher(task).eval(), WordPieceTokenizer(PIECES), make(6), make(4, 9)
    student = make_student(big, torch.arange(len(PIECES)), num_hiddens=32).eval()
    pupils: list[Any] = []
    options: dict[str, Any] = {
        "temperature": 3.0,
        "hard": 0.3,
        "soft": 0.7,
        "hidden": 0.2,
        "hidden_layers": [1],
        "epochs": 1,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertnli.distillation.distill.fit", lambda *args, **kwargs: pupils.append(args))
        distill(big, full, student, full, data, unlabelled=without(more), **options)
    pupil, keyed, _ = pupils[0]
    assert isinstance(pupil, _Pupil)
    found = {}
    student.encoder.blks[0].register_forward_hook(lambda _, args, out: found.update(mine=out))
    big.encoder.blks[1].register_forward_hook(lambda _, args, out: found.update(theirs=out))
    pupil.student.eval()  # no dropout; the pupil itself is in training
    total, apart, units, read = 0.0, 0.0, 0, 0
    for i in range(10):
        one = (data if i < 6 else more)[i % 6 : i % 6 + 1]
        batch = encoded_texts(student.encode(full, one), "one").batch([0])
        own, target = student(batch), big(batch)
        rows = student.token_index(batch)
        rows = torch.arange(len(batch.input_ids)) if rows is None else rows
        n = student.num_targets(batch)
        units += n
        total += 0.3 * float(student.loss(own, batch)) if i < 6 else 0.0
        if task == "regression":
            total += 0.7 * float((own - target).square().sum())
        elif task == "qa":
            total += 0.7 * divergence(target.T, own.T, 3.0) / 2
        else:
            total += 0.7 * divergence(target, own, 3.0)
        last = pupil.project[0](student.features(batch)) - big.features(batch)
        inner = pupil.project[1](found["mine"][rows]) - found["theirs"][rows]
        apart += float(torch.cat([last, inner], 1).square().mean(1).sum())
        read += len(rows)
    total += 0.2 * apart / read * units
    batch = keyed.batch([7, 2, 4, 9, 0, 1, 3, 8, 5, 6])
    assert pupil.num_targets(batch) == units
    assert float(pupil.loss(pupil(batch), batch)) == pytest.approx(total, rel=1e-5)


def test_without_a_teacher_it_is_fit() -> None:
    """With weight on the labels alone, a student is trained as it would be without a teacher."""
    big, full, data = teacher(), WordPieceTokenizer(PIECES), texts(80)
    students = []
    for _ in range(2):
        torch.manual_seed(3)
        students.append(make_student(big, torch.arange(len(PIECES)), num_hiddens=32))
    options = {"epochs": 2, "batch_size": 16, "lr": 1e-3, "progress": False}
    history = distill(big, full, students[0], full, data, data, hard=1, soft=0, hidden=0, **options)  # type: ignore[arg-type]
    encoded = students[1].encode(full, data)
    wanted = fit(students[1], encoded, encoded, **options)  # type: ignore[arg-type]
    assert history.losses == pytest.approx(wanted.losses, abs=1e-6)
    assert history.epochs[-1].dev_score == wanted.epochs[-1].dev_score
    assert history.epochs[-1].metric == "accuracy"


def test_it_learns_from_what_has_no_labels() -> None:
    """On new texts the student is nearer to the teacher for what that said of unlabelled ones; the teacher stays."""
    big, full = teacher(), WordPieceTokenizer(PIECES)
    data, dev = texts(500, 1), texts(200, 2)
    fit(big, big.encode(full, data), epochs=4, lr=1e-3, batch_size=16, progress=False)
    before = {name: value.clone() for name, value in big.state_dict().items()}
    wanted = score(big, big.encode(full, dev)).log_softmax(1)
    small, ids = pruned_tokenizer(full, [*data.first, *(data.second or ())])
    distances = []
    for unlabelled in (None, TextData.of(data.first, data.second)):
        torch.manual_seed(0)
        student = make_student(big, ids, num_hiddens=32, num_layers=2)
        options = {"unlabelled": unlabelled, "epochs": 5, "lr": 2e-3, "batch_size": 16, "progress": False}
        distill(big, full, student, small, data[:16], **options)  # type: ignore[arg-type]
        found = score(student, student.encode(small, dev)).log_softmax(1)
        distances.append(float(torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)))
    assert distances[1] < 0.8 * distances[0], distances
    assert all(torch.equal(value, big.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("task", ["tagging", "qa"])
def test_students_of_tokens(task: str) -> None:
    """Taggers and finders of answers too come nearer to their teacher by what it says of unlabelled examples."""
    make, without = TASKS[task]
    big, full = teacher(task), WordPieceTokenizer(PIECES)
    data, dev = make(300, 1), make(100, 2)
    fit(big, big.encode(full, data), epochs=4, lr=2e-3, batch_size=16, progress=False)
    wanted = score(big, big.encode(full, dev))
    distances = []
    for unlabelled in (None, without(data)):
        torch.manual_seed(0)
        student = make_student(big, torch.arange(len(PIECES)), num_hiddens=32, num_layers=2)
        options: dict[str, Any] = {"epochs": 4, "lr": 2e-3, "batch_size": 16, "progress": False, "hidden_layers": [0]}
        history = distill(big, full, student, full, data[:16], dev, unlabelled=unlabelled, **options)
        assert history.epochs[-1].metric == student.metric
        distances.append(float((score(student, student.encode(full, dev)) - wanted).square().mean()))
    assert distances[1] < 0.8 * distances[0], distances


def test_heads_of_ones_own_see_labels_alone() -> None:
    """Their losses are not asked to ignore anything."""

    class Huber(BERTRegressor):
        def loss(self, outputs: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
            assert batch.labels is not None
            assert bool(batch.labels.isfinite().all())
            return torch.nn.functional.smooth_l1_loss(outputs, batch.labels.view_as(outputs), reduction="sum")

    big, full, data = Huber(teacher("regression")), WordPieceTokenizer(PIECES), scores(20)
    student = Huber(make_student(big, torch.arange(len(PIECES)), num_hiddens=32))
    more = TextData.of(data.first, data.second)
    history = distill(big, full, student, full, data, unlabelled=more, epochs=1, batch_size=7, progress=False)
    assert all(loss > 0 for loss in history.losses)  # no NaN


def test_what_lies_on_the_cpu_is_learnt_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the teacher says too much for a GPU."""
    big, full, data = teacher(), WordPieceTokenizer(PIECES), texts(30)
    more = TextData.of(data.second or [], data.first)
    losses = []
    for most in (2 << 30, 0):
        monkeypatch.setattr("bertnli.distillation.distill._MOST_ON_A_GPU", most)
        torch.manual_seed(0)
        student = make_student(big, torch.arange(len(PIECES)), num_hiddens=32)
        options: dict[str, Any] = {"unlabelled": more, "epochs": 2, "batch_size": 7, "progress": False}
        losses.append(distill(big, full, student, full, data, **options).losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with pytest.raises(ValueError, match="cuda_graphs needs a head that reads one row"):
        distill(big, full, student, full, data, cuda_graphs=True)


def test_sentences_without_words() -> None:
    big, full = teacher("tagging"), WordPieceTokenizer(PIECES)
    student = make_student(big, torch.arange(len(PIECES)), num_hiddens=32)
    data = WordData([[], ["red"], []], [[], [1], []], NAMES)
    losses = distill(big, full, student, full, data, epochs=1, batch_size=1, progress=False).losses
    assert sorted(losses)[:2] == [0, 0]
    assert sorted(losses)[2] > 0


def test_bad_arguments() -> None:
    full, data = WordPieceTokenizer(PIECES), texts(8)
    with pytest.raises(ValueError, match="same task and classes"):
        distill(teacher(), full, BERTRegressor(teacher()), full, data)

    class Doubled(BERTClassifier):
        def forward(self, inputs: Any) -> torch.Tensor:
            return 2 * super().forward(inputs)

    with pytest.raises(ValueError, match="the student has a `forward` of its own"):
        distill(teacher(), full, Doubled(BERTModel(teacher().config), 2, NAMES), full, data)
    with pytest.raises(ValueError, match="train has no labels"):
        distill(teacher(), full, teacher(), full, TextData.of(data.first, data.second))
    for layers, message in (([0, 1, 2], "student has 2 layers before its last"), ([2], "0 to 1 of the teacher, not 2")):
        with pytest.raises(ValueError, match=message):
            distill(teacher(), full, teacher(), full, data, hidden_layers=layers)
    with pytest.raises(ValueError, match="hidden_layers need `hidden`"):
        distill(teacher(), full, teacher(), full, data, hidden_layers=[0], hidden=0)
    for freeze in ("encoder", 3):
        with pytest.raises(ValueError, match="hidden_layers are for layers that learn"):
            distill(teacher(), full, teacher(), full, data, hidden_layers=[0], freeze=freeze)
    with pytest.raises(ValueError, match="cuda_graphs needs a head that reads one row"):
        distill(teacher("tagging"), full, teacher("tagging"), full, words(8), cuda_graphs=True)
    for temperature in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            distill(teacher(), full, teacher(), full, data, temperature=temperature)
    finder, asked = teacher("qa"), questions(8)
    small, ids = pruned_tokenizer(full, ["one two"])
    assert len(small.encode("red")) == 3  # of its letters
    with pytest.raises(ValueError, match="prune no token"):
        distill(finder, full, make_student(finder, ids, num_hiddens=32), small, replace(asked, questions=["red"] * 8))


def test_a_run_is_continued_only_as_it_was_begun(tmp_path: Path) -> None:
    """The weights of its loss, the teacher and the labels are the same."""
    full, data = WordPieceTokenizer(PIECES), texts(20)
    other = teacher()
    with torch.no_grad():
        other.output.bias[0] += 1

    def run(big: Head, data: TextData, file: Path, **options: Any) -> Head:
        torch.manual_seed(0)
        student = make_student(big, torch.arange(len(PIECES)), num_hiddens=32, num_layers=2)
        distill(big, full, student, full, data, epochs=2, state_file=file, progress=False, **options)
        return student

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        run(teacher(), data, file, on_epoch=stop)
    for options in ({"temperature": 3.0}, {"hard": 1}, {"hidden": 0}, {"hidden_layers": [1]}):
        with pytest.raises(ValueError, match=r"state\.pt is of a run with other settings"):
            run(teacher(), data, file, **options)
    for big, examples in ((other, data), (teacher(), replace(data, labels=[0] * 20))):
        with pytest.raises(ValueError, match=r"state\.pt is of a run with other settings"):
            run(big, examples, file)
    whole, continued = run(teacher(), data, tmp_path / "whole.pt"), run(teacher(), data, file)
    assert all(torch.equal(value, continued.state_dict()[name]) for name, value in whole.state_dict().items())


def test_unlabelled_sentences_for_a_model_of_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are read as `bertnli predict` reads them; a file without any is said to be so."""
    words = WordTokenizer.from_texts(["red . two"], 1)
    bert = BERTModel(BERTConfig(len(words), num_hiddens=16, ffn_num_hiddens=16, num_heads=1, num_layers=1))
    big = BERTClassifier(bert, 2, NAMES)
    save_pretrained(big, tmp_path / "teacher", words)
    (tmp_path / "train.csv").write_text("t,label\nred,none\nred,some\n")
    arguments = ["distill", "--teacher", tmp_path / "teacher", "--train", tmp_path / "train.csv", "--text-columns", "t",
                 "--unlabelled", tmp_path / "more.txt", "--output", tmp_path / "student", "--epochs", 1,
                 "--num-hiddens", 8, "--num-heads", 1, "--num-layers", 1, "--quiet"]  # fmt: skip
    (tmp_path / "more.txt").write_text("")
    assert main([str(a) for a in arguments]) == 2
    assert "more.txt has no examples" in capsys.readouterr().err
    (tmp_path / "more.txt").write_text("two.\n")
    assert main([str(a) for a in arguments]) == 0
    assert "8 of 8 tokens" in capsys.readouterr().out  # <unk>, four special ones, "red", "two", "."


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = texts(60)
    save_pretrained(teacher(), tmp_path / "teacher", WordPieceTokenizer(PIECES))
    rows = zip(data.first, data.second or (), data.labels or (), strict=True)
    table = tmp_path / "train.csv"
    table.write_text("a,b,l\n" + "".join(f"{a},{b},{NAMES[label]}\n" for a, b, label in rows))
    (tmp_path / "more.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in zip(data.first, data.first, strict=True)))
    reading = ["--text-columns", "a,b", "--label-column", "l"]
    common = ["--teacher", tmp_path / "teacher", "--train", table, *reading, "--epochs", 1, "--quiet", "--num-hiddens"]
    arguments = ["distill", *common, 16, "--num-layers", 1, "--unlabelled", tmp_path / "more.tsv", "--dev", table]
    assert main([str(a) for a in [*arguments, "--output", tmp_path / "student"]]) == 0
    out = capsys.readouterr().out
    assert "60 labelled examples, 60 unlabelled" in out
    assert "dev accuracy" in out
    student, tokenizer = from_pretrained(tmp_path / "student")
    assert isinstance(student, BERTClassifier)
    assert student.label_names == NAMES
    assert (student.config.num_hiddens, student.config.vocab_size) == (16, len(tokenizer))
    assert len(tokenizer) == len(PIECES) - 1  # "never" does not occur
    assert main(["evaluate", "--model", str(tmp_path / "student"), "--data", str(table), *reading, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 60
    for width in (64, 32):
        layers = [*common, width, "--teacher-layers", "0,2", "--output", tmp_path / f"layers{width}"]
        assert main([str(a) for a in ["distill", *layers, "--hidden-layers", "0"]]) == 0
        config = from_pretrained(tmp_path / f"layers{width}")[0].config
        assert (config.num_layers, config.num_hiddens) == (2, width)
    # The teacher's classes in another order: the same student, its columns in that order.
    whole = ["distill", *common, 64, "--teacher-layers", "0,1,2", "--output"]
    assert main([str(a) for a in [*whole, tmp_path / "own"]]) == 0
    assert main([str(a) for a in [*whole, tmp_path / "turned", "--labels", ",".join(NAMES[::-1])]]) == 0
    (own, tokenizer), (turned, _) = (from_pretrained(tmp_path / name) for name in ("own", "turned"))
    assert isinstance(own, BERTClassifier)
    assert isinstance(turned, BERTClassifier)
    assert turned.label_names == NAMES[::-1]
    encoded = own.encode(tokenizer, data)
    torch.testing.assert_close(score(turned, encoded).flip(1), score(own, encoded))

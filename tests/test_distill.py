"""A student from a teacher: its parts, its loss, and that it learns from what has no labels."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from bertnli import (
    BERTClassifier,
    BERTConfig,
    BERTModel,
    BERTRegressor,
    BERTTagger,
    Head,
    PairData,
    Vocab,
    WordPieceTokenizer,
    WordTokenizer,
    fit,
    from_pretrained,
    save_pretrained,
    score,
)
from bertnli.cli import main
from bertnli.distill import _Pupil, distill, make_student, pruned_tokenizer

WORDS = ["red", "green", "blue", "one", "two", "three", "four", "five"]
PIECES = [*WordPieceTokenizer.SPECIAL, *WORDS, "##s", "never", "r", "##e", "##d"]
NAMES = ("none", "some")


def texts(n: int, seed: int = 0) -> PairData:
    """Pairs; the class is whether a colour of the first text returns in the second."""
    rng = random.Random(seed)
    first = [rng.choices(WORDS, k=4) for _ in range(n)]
    second = [rng.choices(WORDS, k=3) for _ in range(n)]
    labels = [int(bool({"red", "green", "blue"} & set(a) & set(b))) for a, b in zip(first, second, strict=True)]
    return PairData([" ".join(a) for a in first], [" ".join(b) for b in second], labels, NAMES)


def teacher(task: str = "classification", hidden: int = 64) -> Head:
    torch.manual_seed(0)
    config = BERTConfig.original(
        len(PIECES), num_hiddens=hidden, ffn_num_hiddens=96, num_heads=2, num_layers=3, max_len=32, dropout=0.1
    )
    bert = BERTModel(config)
    return BERTClassifier(bert, 2, NAMES) if task == "classification" else BERTRegressor(bert)


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
    small, ids = pruned_tokenizer(full, [*data.premises, *(data.hypotheses or ())])
    assert len(small) < len(full)
    same = make_student(big, ids, num_hiddens=64, layers=[0, 1, 2], max_len=32).eval()
    torch.testing.assert_close(score(same, same.encode(small, data, 32)), score(big, big.encode(full, data, 32)))
    some = make_student(big, ids, num_hiddens=64, layers=[2], max_len=32)
    assert torch.equal(some.encoder.blks[0].ffn.dense1.weight, big.encoder.blks[2].ffn.dense1.weight)
    for options, message in (({"num_hiddens": 32, "layers": [0]}, "64 wide, the student is 32"),
                             ({"num_hiddens": 64, "layers": [3]}, "layers 0 to 2, not 3")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make_student(big, ids, **options)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_loss(task: str) -> None:
    torch.manual_seed(1)
    big, full, data = teacher(task).eval(), WordPieceTokenizer(PIECES), texts(6)
    student = make_student(big, torch.arange(len(PIECES)), num_hiddens=32)
    pupil = _Pupil(student, 64, 3.0, 0.3, 0.7, 0.2).train()
    width = student.output.out_features
    outputs, target, vector = torch.randn(6, width + 64), torch.randn(6, width), torch.randn(6, 64)
    own = torch.tensor([0.0, 1.0, torch.nan, 1.0, torch.nan, 0.0])
    pairs = student.encode(full, data)
    pairs.labels = torch.cat([own[:, None], target, vector], 1)
    loss = float(pupil.loss(outputs, pairs.batch(range(6))))
    wanted = 0.0
    for i in range(6):
        z, t = outputs[i, :width], target[i]
        if task == "classification":
            p, q = (t / 3).softmax(0), (z / 3).softmax(0)
            wanted += 0.7 * 9 * float((p * (p / q).log()).sum())
            wanted += 0.0 if own[i].isnan() else -0.3 * float(z.log_softmax(0)[int(own[i])])
        else:
            wanted += 0.7 * float((z - t).square().sum())
            wanted += 0.0 if own[i].isnan() else 0.3 * float((z - own[i]).square().sum())
        wanted += 0.2 * float((outputs[i, width:] - vector[i]).square().mean())
    assert loss == pytest.approx(wanted, rel=1e-5)


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
    small, ids = pruned_tokenizer(full, [*data.premises, *(data.hypotheses or ())])
    distances = []
    for unlabelled in (None, PairData.of(data.premises, data.hypotheses)):
        torch.manual_seed(0)
        student = make_student(big, ids, num_hiddens=32, num_layers=2)
        options = {"unlabelled": unlabelled, "epochs": 5, "lr": 2e-3, "batch_size": 16, "progress": False}
        distill(big, full, student, small, data[:16], **options)  # type: ignore[arg-type]
        found = score(student, student.encode(small, dev)).log_softmax(1)
        distances.append(float(torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)))
    assert distances[1] < 0.8 * distances[0], distances
    assert all(torch.equal(value, big.state_dict()[name]) for name, value in before.items())


def test_bad_arguments() -> None:
    full, data = WordPieceTokenizer(PIECES), texts(8)
    tagger = BERTTagger(teacher(), 2)
    with pytest.raises(ValueError, match="only classification and regression are distilled, not 'tagging'"):
        distill(tagger, full, tagger, full, data)
    with pytest.raises(ValueError, match="same task and classes"):
        distill(teacher(), full, BERTRegressor(teacher()), full, data)
    with pytest.raises(ValueError, match="train has no labels"):
        distill(teacher(), full, teacher(), full, PairData.of(data.premises, data.hypotheses))
    with pytest.raises(ValueError, match="both be single texts, or both pairs"):
        distill(teacher(), full, teacher(), full, data, unlabelled=PairData.of(data.premises))


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = texts(60)
    save_pretrained(teacher(), tmp_path / "teacher", WordPieceTokenizer(PIECES))
    rows = zip(data.premises, data.hypotheses or (), data.labels or (), strict=True)
    table = tmp_path / "train.csv"
    table.write_text("a,b,l\n" + "".join(f"{a},{b},{NAMES[label]}\n" for a, b, label in rows))
    (tmp_path / "more.tsv").write_text(
        "".join(f"{a}\t{b}\n" for a, b in zip(data.premises, data.premises, strict=True))
    )
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
    layers = [*common, 64, "--teacher-layers", "0,2", "--output", tmp_path / "layers"]
    assert main([str(a) for a in ["distill", *layers]]) == 0
    assert from_pretrained(tmp_path / "layers")[0].config.num_layers == 2

"""The report: whole, self-contained, and true to the figures."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from helpers.tiny_tasks import PIECES, TASKS, scores, teacher, texts

from bertnli import WordPieceTokenizer
from bertnli.data.texts import TextData
from bertnli.inference.predict import evaluate_outputs
from bertnli.report.page import Evaluated, write_report
from bertnli.training.loop import fit

TOKENIZER = WordPieceTokenizer(PIECES)


class _Page(HTMLParser):
    """Checks that elements close in order, and collects headings, text and what the page would load."""

    EMPTY = ("meta", "br", "link", "path", "use", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.loaded: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href") and tag != "use"]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def read(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    assert not page.open
    assert not [place for place in page.loaded if not place.startswith("#")], "the page loads something"
    return page


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_report_of_a_run_and_an_evaluation(task: str, tmp_path: Path) -> None:
    model, examples = teacher(task), {"classification": texts, "regression": scores}[task](30)
    data = model.encode(TOKENIZER, examples)
    history = fit(model, data, data, epochs=2, progress=False)
    figures, outputs = evaluate_outputs(model, data)
    evaluated = Evaluated("dev", model, examples, data, outputs, figures)
    write_report(tmp_path / "r.html", "a <run>", history=history, evaluated=[evaluated], settings={"lr": 1e-3})
    page = read(tmp_path / "r.html")
    shown = {"classification": ["By class", "Confusion", "Precision and recall", "Calibration"]}
    assert page.headings[:3] == ["Training", "Curves", "Evaluation on dev"]
    assert page.headings[-2:] == ["Lengths", "Run"]
    assert [name for name in page.headings if name in shown.get(task, ())] == shown.get(task, [])
    assert "a <run>" in page.words
    metric = "accuracy" if task == "classification" else "mse"
    assert f"{figures[metric]:.4f}" in page.words


def test_mistakes_are_the_most_confident_wrong_predictions(tmp_path: Path) -> None:
    model = teacher()
    examples = TextData(["<script>alert(1)</script>", "b", "c"], None, [0, 0, 1], ("no", "yes"))
    data = model.encode(TOKENIZER, examples)
    outputs = torch.tensor([[0.0, 3.0], [0.0, 1.0], [0.0, 9.0]])  # wrong, less surely wrong, right
    figures = model.metrics(outputs, data)
    write_report(tmp_path / "r.html", "r", evaluated=[Evaluated("dev", model, examples, data, outputs, figures)])
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    table = text[text.index("The most confident mistakes") :]
    assert re.findall(r"<td>(0\.\d+)</td>", table)[:2] == ["0.9526", "0.7311"]
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in table


@pytest.mark.parametrize("task", ["multilabel", "tagging", "qa"])
def test_other_heads_have_their_figures(task: str, tmp_path: Path) -> None:
    model, examples = teacher(task), TASKS[task][0](12)
    data = model.encode(TOKENIZER, examples)
    figures, outputs = evaluate_outputs(model, data)
    write_report(tmp_path / "r.html", task, evaluated=[Evaluated("dev", model, examples, data, outputs, figures)])
    page = read(tmp_path / "r.html")
    assert page.headings[0] == "Evaluation on dev"
    assert f"{figures[model.metric]:.4f}" in page.words

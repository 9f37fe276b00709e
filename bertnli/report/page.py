"""A self-contained HTML page of a training run, an evaluation, or both: figures, plots, and the worst mistakes."""

from __future__ import annotations

import html
import os
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import bertnli
from bertnli.data.arguments import path_of
from bertnli.data.files import atomic_path
from bertnli.data.html import figures as show_figures
from bertnli.data.html import table
from bertnli.data.texts import TextData
from bertnli.report import plots
from bertnli.tasks.base import Head
from bertnli.tasks.calibration import fit_temperature, reliability
from bertnli.tasks.classification import BERTClassifier
from bertnli.tasks.multilabel import BERTMultiLabelClassifier
from bertnli.tasks.regression import BERTRegressor
from bertnli.text.encoded import EncodedTexts, encoded_texts
from bertnli.training.history import History

REPORT = "report.html"  # in the folder of a run
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
body { color: #1c2733; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #d5dde5 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } svg { max-width: 100%; height: auto }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e6ebf0; vertical-align: top }
th { font-weight: 600; color: #4a5a6a } td.text, th.text { text-align: left; overflow-wrap: break-word }
.figures { display: flex; flex-wrap: wrap; gap: .8rem }
.figures div { background: #f2f5f8; border-radius: .4rem; padding: .5rem .9rem }
.figures b { display: block; font-size: 1.3rem; font-weight: 600 } p.note { color: #4a5a6a }
"""


@dataclass(frozen=True)
class Section:
    """A heading and the HTML below it."""

    title: str
    body: str


@dataclass(frozen=True)
class Evaluated:
    """A model's outputs on labelled data.

    name      of the data, as it is shown
    head      the model
    examples  texts and labels; None where they are not at hand: then no mistakes are shown
    data      what `head.encode` gave for them
    outputs   float32 [R, num_labels] on the CPU, as `score` gives them
    figures   what `evaluate` gave
    """

    name: str
    head: Head
    examples: Any
    data: Any
    outputs: Tensor
    figures: dict[str, Any]


def write_report(
    path: str | os.PathLike[str],
    title: str,
    *,
    history: History | None = None,
    evaluated: Sequence[Evaluated] = (),
    sections: Sequence[Section] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write the page.

    history    of the training run
    evaluated  the evaluations
    sections   more to show, between the run and the evaluations
    settings   the run's configuration
    """
    shown = [] if history is None or not history.epochs else training_sections(history)
    shown += sections
    for found in evaluated:
        shown += evaluation_sections(found)
    write_page(path, title, [*shown, _machine(settings or {})])


def write_page(path: str | os.PathLike[str], title: str, sections: Sequence[Section]) -> None:
    """Write a page of sections. It needs no network, and is whole or as it was."""
    body = "\n".join(f"<section><h2>{html.escape(s.title)}</h2>\n{s.body}</section>" for s in sections)
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )
    with atomic_path(path_of(path)) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def training_sections(history: History) -> list[Section]:
    best = history.best
    seconds = sum(e.seconds for e in history.epochs)
    figures: dict[str, Any] = {"epochs": len(history.epochs), "training loss": history.epochs[-1].train_loss}
    if best is not None:
        figures |= {f"best dev {best.metric}": best.score, "in epoch": best.epoch}
    figures |= {"seconds of training": round(seconds, 1), "pairs a second": round(history.epochs[-1].pairs_per_second)}
    names = [name for name in vars(history.epochs[0]) if name != "metric"]
    rows = [[getattr(epoch, name) for name in names] for epoch in history.epochs]
    return [
        Section("Training", show_figures(figures)),
        Section("Curves", plots.curves(history) + table([name.replace("_", " ") for name in names], rows)),
    ]


def evaluation_sections(found: Evaluated) -> list[Section]:
    """What can be shown of the task: the figures of all, more of classifiers and regressors."""
    head, figures = found.head, found.figures
    plain = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    sections = [Section(f"Evaluation on {found.name}", show_figures(plain))]
    for name in ("per_class", "per_label"):
        if rows := figures.get(name):
            columns = list(next(iter(rows.values())))
            shown = table(["", *columns], [[label, *cells.values()] for label, cells in rows.items()])
            sections.append(Section("By class" if name == "per_class" else "By label", shown))
    encoded = encoded_texts(found.data, "data")
    labels = getattr(found.data, "labels", None)  # one an example, however many windows it has
    if isinstance(head, BERTClassifier) and labels is not None:
        sections += _classification(found, head, labels)
    elif isinstance(head, BERTRegressor) and labels is not None and found.outputs.shape[1] == 1:
        values, truth = head.values(found.outputs)[:, 0], labels.view(-1)
        sections.append(Section("Predictions and labels", plots.scatter(values.numpy(), truth.numpy())))
        rows = [(float(abs(v - t)), f"{t:.3f}", f"{v:.3f}") for v, t in zip(values, truth, strict=True)]
        sections += _mistakes(found.examples, rows, "error")
    return [*sections, _lengths(head, encoded)]


def _classification(found: Evaluated, head: BERTClassifier, labels: Tensor) -> list[Section]:
    names = head.label_names or tuple(str(i) for i in range(found.outputs.shape[1]))
    probabilities = head.probabilities(found.outputs)
    is_multilabel = isinstance(head, BERTMultiLabelClassifier)
    truth = labels > 0 if is_multilabel else torch.nn.functional.one_hot(labels, len(names)).bool()
    sections = [Section("Precision and recall", plots.precision_recall_curves(probabilities, truth, names))]
    if is_multilabel:
        return sections
    sections.insert(0, Section("Confusion", _confusion(found.figures["confusion"], names)))
    temperature = fit_temperature(found.outputs, labels)
    before, after = reliability(probabilities, labels), reliability((found.outputs / temperature).softmax(1), labels)
    note = (
        f"Expected calibration error {before.error:.4f} as the model is, {after.error:.4f} at temperature "
        f"{temperature:.2f}, the best here. <code>bertnli train --calibrate</code> stores that of the dev data."
    )
    sections.append(Section("Calibration", f'{plots.reliability_diagram(before, after)}<p class="note">{note}</p>'))
    confidence, predicted = probabilities.max(1)
    wrong = [
        (float(p) if guess != label else 0.0, names[label], names[guess])
        for p, guess, label in zip(confidence, predicted.tolist(), labels.tolist(), strict=True)
    ]
    return [*sections, *_mistakes(found.examples, wrong, "confidence")]


def _confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    most = max(1, *(n for row in counts for n in row))
    head = "".join(f"<th>as {html.escape(name)}</th>" for name in names)
    rows = "".join(
        f'<tr><th class="text">{html.escape(name)}</th>'
        + "".join(f'<td style="background: rgb(37 99 235 / {0.75 * n / most:.2f})">{n}</td>' for n in row)
        + "</tr>"
        for name, row in zip(names, counts, strict=True)
    )
    return f"<table><tr><th></th>{head}</tr>{rows}</table>"


def _mistakes(examples: Any, rows: list[tuple[float, str, str]], how: str, most: int = 20) -> list[Section]:
    """The worst of (badness, label, prediction) for each example, with its texts."""
    if not isinstance(examples, TextData) or len(examples) != len(rows):
        return []
    worst = sorted((i for i, row in enumerate(rows) if row[0] > 0), key=lambda i: -rows[i][0])[:most]
    if not worst:
        return []
    sides = [side for side in (examples.first, examples.second) if side is not None]
    titles = ["text"] if len(sides) == 1 else ["premise", "hypothesis"]
    shown = table(
        [how, "label", "prediction", *titles],
        [[rows[i][0], rows[i][1], rows[i][2], *(side[i] for side in sides)] for i in worst],
    )
    return [Section("The most confident mistakes" if how == "confidence" else "The largest errors", shown)]


def _lengths(head: Head, encoded: EncodedTexts) -> Section:
    longest = head.sequence_len()
    full, mean = int((encoded.lengths >= longest).sum()), float(encoded.lengths.float().mean())
    most = int(encoded.lengths.max())
    note = f"{len(encoded)} sequences of {mean:.1f} tokens on average; the longest has {most} of {longest} allowed."
    if full:
        note += f" {full} ({full / len(encoded):.1%}) have that many; longer texts were cut."
    return Section("Lengths", f'{plots.histogram_of_lengths(encoded.lengths, longest)}<p class="note">{note}</p>')


def _machine(settings: Mapping[str, Any]) -> Section:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    facts = dict(settings) | {
        "bertnli": bertnli.__version__,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "peak memory of the process": f"{peak / 2**20:.0f} MiB",
    }
    return Section("Run", table(["", "value"], [[name, str(value)] for name, value in facts.items()]))

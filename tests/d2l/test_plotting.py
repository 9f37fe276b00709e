"""Curves in scripts, axes, and figures in a notebook's kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from helpers import ROOT

from bertnli import d2l

CELLS = [
    "import torch\nfrom torch import nn\nfrom bertnli.d2l import torch as d2l",
    """x, y = torch.randn(40, 5), torch.randint(0, 3, (40,))
net, loss = nn.Linear(5, 3), nn.CrossEntropyLoss(reduction="none")
batches = d2l.load_array((x, y), 4)
d2l.train_ch13(net, batches, batches, loss, torch.optim.Adam(net.parameters(), lr=0.01), 2, d2l.try_all_gpus())""",
    "d2l.Animator(nrows=2).fig",
]
RUN = """
import json, sys, nbclient, nbformat
book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in json.load(sys.stdin)])
nbclient.NotebookClient(book, timeout=300, kernel_name="python3").execute()
print(json.dumps([cell.outputs for cell in book.cells]))
"""


def test_animator_keeps_its_curves(tmp_path: Path) -> None:
    animator = d2l.Animator(xlabel="epoch", xlim=[1, 2], legend=["a", "b"])
    animator.add(1, (0.5, None))
    animator.add(2, (0.25, 0.75))
    assert animator.X == [[1.0, 2.0], [2.0]]
    assert animator.Y == [[0.5, 0.25], [0.75]]
    assert animator.fig is not None
    animator.fig.savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_axes_are_indexed_as_those_of_pyplot() -> None:
    assert len(d2l.Animator().axes) == 1
    assert d2l.Animator(nrows=2).axes.shape == (2,)
    square = d2l.Animator(nrows=2, ncols=3)
    assert square.axes.shape == (2, 3)
    square.add(1, 2)
    assert [len(axis.lines) for axis in np.ravel(square.axes)] == [1, 0, 0, 0, 0, 0]


def test_figure_size_and_axes() -> None:
    with matplotlib.rc_context():
        d2l.set_figsize((2.0, 1.0))
        assert matplotlib.rcParams["figure.figsize"] == [2.0, 1.0]
    axis = d2l.Animator().axes[0]
    axis.plot([1, 2], [3, 4])
    d2l.set_axes(axis, "x", "y", [0, 5], None, "linear", "log", ["curve"])
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_xlim(), axis.get_yscale()) == ("x", "y", (0, 5), "log")
    assert axis.get_legend().get_texts()[0].get_text() == "curve"


@pytest.mark.slow
def test_a_notebook_shows_the_picture_and_nothing_else(tmp_path: Path) -> None:
    """In a real kernel, without `%matplotlib inline`: one figure, drawn as SVG, then the two lines of figures."""
    result = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(CELLS), cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    imported, trained, figure = json.loads(result.stdout)
    assert imported == []
    pictures = [output["data"] for output in trained if output["output_type"] == "display_data"]
    assert len(pictures) == 1
    assert pictures[0]["image/svg+xml"].count("<path") > 10
    streams = [output["text"] for output in trained if output["output_type"] == "stream"]
    assert len(streams) == 1
    assert "examples/sec" in streams[0]
    assert len(trained) == 2  # and no repr of what the last line returns
    assert "image/svg+xml" in figure[0]["data"]

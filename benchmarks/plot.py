"""Draw docs/speed.svg, the README's picture, from benchmarks/results: `python benchmarks/plot.py` (needs matplotlib).

Each bar is how many times as long a peer takes for the same work on the same machine; bertnli is the line at 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
MACHINE = "AMD EPYC (family 26)"  # Zen 5, two cores
MODELS = {"small": "bert.small", "minilm": "MiniLM", "base": "BERT-base"}
BATCHES = {"small": 512, "minilm": 128, "base": 64}
PEERS = {
    "d2l 128": ("D2L's modules, padded to 128", "#b9bec7"),
    "hf buckets": ("transformers, length buckets", "#4878a8"),
}


def rows(name: str) -> list[dict[str, Any]]:
    """The results of one suite on MACHINE; later lines replace earlier ones of the same work."""
    lines = (ROOT / "benchmarks" / "results" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["machine"].startswith(MACHINE)]


def training() -> list[tuple[str, dict[str, float]]]:
    """(label, {peer: ratio}) for each model and precision."""
    found = {
        (row["shape"], row["precision"]): row
        for row in rows("encoder")
        if row["work"] == "training" and BATCHES.get(row["shape"]) == row["batch"]
    }
    return [
        (f"{MODELS[shape]}, {precision}", {peer: row[peer] for peer in PEERS if peer in row})
        for shape in MODELS
        for precision in ("fp32", "bf16")
        if (row := found.get((shape, precision))) is not None
    ]


def inference() -> list[tuple[str, float, str]]:
    """(label, ratio, peer) of the fastest peer for each model and precision, from token ids."""
    found = {
        (row["shape"], row["precision"]): min((ratio, peer) for peer, ratio in row["ratios"].items())
        for row in rows("inference")
        if row["from"] == "ids" and BATCHES[row["shape"]] == row["batch"]
    }
    return [
        (f"{MODELS[shape]}, {precision}", *found[shape, precision])
        for shape in MODELS
        for precision in ("fp32", "bf16", "int8")
        if (shape, precision) in found
    ]


def main() -> None:
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "bertnli", "svg.fonttype": "none"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.9), layout="constrained")
    steps = training()
    for place, (_, ratios) in enumerate(steps):
        for offset, (peer, ratio) in enumerate(ratios.items()):
            name, color = PEERS[peer]
            bar = left.barh(place + 0.4 * offset, ratio, 0.38, color=color, label=None if place else name)
            left.bar_label(bar, fmt="%.1f" if ratio < 10 else "%.0f", padding=2)
    left.set_yticks([place + 0.2 for place in range(len(steps))], [label for label, _ in steps])
    left.set(xscale="log", xlim=(0.9, 200), title="Training step (bertnli = 1)")
    left.set_xticks([1, 10, 100], ["1", "10", "100"])
    left.minorticks_off()
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    best = inference()
    bars = right.barh(range(len(best)), [ratio for _, ratio, _ in best], 0.7, color="#4878a8")
    right.bar_label(bars, [f"{ratio:.1f}  {peer}" for _, ratio, peer in best], padding=2)
    right.set_yticks(range(len(best)), [label for label, _, _ in best])
    right.set(xlim=(0, 4.6), title="Inference, fastest peer (bertnli = 1)")
    for axes in (left, right):
        axes.axvline(1, color="#c44e52", linewidth=1.5)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0)
    figure.savefig(ROOT / "docs" / "speed.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

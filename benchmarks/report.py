"""A page of all records, and the picture of the README.

    python benchmarks/report.py [--results FOLDER] [--output PAGE] [--svg FILE]

The page is one HTML file without links to others: machine by machine, the tables and plots of every suite, what was not
measured and why, and where others are better. Later records of the same work on the same machine replace earlier ones.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from common import RESULTS, ROOT, RUNS

from bertnli.bench.measure import BATCHES
from bertnli.bench.race import PRECISIONS, Record, duration, read
from bertnli.data.html import table

SUITES = (
    "end_to_end",
    "inference",
    "training",
    "text",
    "attention",
    "encoder",
    "service",
    "scaling",
    "roofline",
    "tasks",
)
README_MACHINE = "AMD EPYC (family 26)"  # Zen 5, two cores
MODELS = {"small": "bert.small", "minilm": "MiniLM", "base": "BERT-base"}
GREY, BLUE, RED = "#b9bec7", "#4878a8", "#c44e52"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733 }
h1 { font-size: 1.6rem } h2 { font-size: 1.3rem; margin: 2.4rem 0 .4rem; border-bottom: 2px solid #d5dde5 }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #e6ebf0; vertical-align: top }
td.text, th.text { text-align: left } svg { max-width: 100%; height: auto } p.note, li.note { color: #4a5a6a }
summary { cursor: pointer; color: #34506b } code { background: #f2f5f8; padding: 0 .2rem }
"""
EXPLANATION = """<p>Contestants do the same work in turn, and their results are compared first. <b>x</b> is the median
over rounds of (a contestant's time / bertnli's time in the same precision): 2.0 means that bertnli takes half as long.
The interval is the 95 % confidence interval of that median, the spread the distance of the quartiles of the times over
their median.</p>"""
Bar = tuple[str, float, str, str]  # label, value, text behind the bar, color


def load_records(folder: Path) -> list[Record]:
    """The latest record of each contestant in each work on each machine."""
    latest: dict[str, Record] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for record in read(path):
            key = [record[n] for n in ("machine", "threads", "suite", "work", "parameters", "contestant", "precision")]
            latest[json.dumps(key, sort_keys=True)] = record
    return list(latest.values())


def sizes(record: Record) -> str:
    """The parameters in words: "minilm, pairs 128"."""
    shown = ((name, value) for name, value in (record["parameters"] or {}).items() if value is not None)
    return ", ".join(str(v) if isinstance(v, str) else f"{n} {v:,}" for n, v in shown)


def is_peer(record: Record) -> bool:
    return not record["contestant"].startswith("bertnli") and record["contestant"] != "floor"


def bar_chart(title: str, bars: Sequence[Bar], label_width: int = 250, width: int = 720) -> str:
    """Horizontal bars on a logarithmic scale around a line at 1."""
    values = [value for _, value, _, _ in bars]
    low, high = math.log10(min([0.8, *values])), math.log10(max([2.0, *values]) * 1.1)
    scale = (width - label_width - 150) / (high - low)

    def x(value: float) -> float:
        return label_width + (math.log10(value) - low) * scale

    height = 22 * len(bars) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<text x="{label_width}" y="14" font-weight="600">{html.escape(title)}</text>',
    ]
    for i, (label, value, text, color) in enumerate(bars):
        y = 24 + 22 * i
        left, right = sorted((x(1.0), x(value)))
        parts += [
            f'<text x="{label_width - 8}" y="{y + 13}" text-anchor="end">{html.escape(label)}</text>',
            f'<rect x="{left:.1f}" y="{y}" width="{max(right - left, 1):.1f}" height="17" fill="{color}"/>',
            f'<text x="{max(right, x(1.0)) + 5:.1f}" y="{y + 13}">{html.escape(text)}</text>',
        ]
    parts.append(
        f'<line x1="{x(1.0):.1f}" x2="{x(1.0):.1f}" y1="20" y2="{height - 4}" stroke="{RED}" stroke-width="1.5"/>'
    )
    return "\n".join([*parts, "</svg>"])


def growth(title: str, found: Sequence[Record], width: int = 720, height: int = 300) -> str:
    """Times over sizes on logarithmic scales, with the exponent of the power that fits each contestant's."""
    lines = {
        f"{rows[0]['contestant']} {rows[0]['precision']}": sorted((r["parameters"]["size"], r["seconds"]) for r in rows)
        for rows in groups(found, "contestant", "precision").values()
    }
    points = [(math.log10(size), math.log10(seconds)) for line in lines.values() for size, seconds in line]
    if len({x for x, _ in points}) < 2:
        return ""
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points) + 1e-9

    def at(size: float, seconds: float) -> tuple[float, float]:
        x = 90 + (math.log10(size) - left) / (right - left) * (width - 350)
        return x, height - 35 - (math.log10(seconds) - low) / (high - low) * (height - 70)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<text x="90" y="14" font-weight="600">{html.escape(title)}</text>',
    ]
    for size in sorted({size for line in lines.values() for size, _ in line}):
        parts.append(f'<text x="{at(size, 1)[0]:.0f}" y="{height - 12}" text-anchor="middle">{size:,}</text>')
    for y in (low, high):
        parts.append(f'<text x="82" y="{at(10**left, 10**y)[1] + 4:.0f}" text-anchor="end">{duration(10**y)}</text>')
    colors = (BLUE, RED, "#6a9f58", "#8c6bb1", GREY)
    for i, (name, line) in enumerate(lines.items()):
        color, places = colors[i % len(colors)], [at(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
        label = f"{name}: exponent {exponent(line):.2f}" if len(line) > 1 else name
        parts.append(f'<text x="{width - 240}" y="{40 + 18 * i}" fill="{color}">{html.escape(label)}</text>')
    return "\n".join([*parts, "</svg>"])


def exponent(line: Sequence[tuple[float, float]]) -> float:
    """Of the power of the size that fits the seconds best, by least squares of the logarithms."""
    xs, ys = [math.log(size) for size, _ in line], [math.log(seconds) for _, seconds in line]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def grown(found: Sequence[Record]) -> str:
    """The plots of a scaling suite, one for each piece of work and model."""
    named = [{**r, "model": r["parameters"].get("model")} for r in found if r["seconds"]]
    charts = (
        growth(f"{rows[0]['work']}, {rows[0]['model'] or ''}".rstrip(", "), rows)
        for rows in groups(named, "work", "model").values()
    )
    return "".join(f"<div>{chart}</div>" for chart in charts)


def times(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.2f}" if ratio < 2 else f"{ratio:.1f}"


def plot_of(title: str, found: Sequence[Record]) -> str:
    """A bar for each peer: how many times as long it takes."""
    rows = [r for r in found if r["ratio"] is not None and is_peer(r)]
    bars = [
        (f"{r['contestant']} {r['precision']}", r["ratio"], f"{times(r['ratio'])} x", RED if r["ratio"] < 1 else BLUE)
        for r in sorted(
            rows, key=lambda r: (PRECISIONS.index(r["precision"]) if r["precision"] in PRECISIONS else 0, r["ratio"])
        )
    ]
    return bar_chart(title, bars) if bars else ""


def table_of(found: Sequence[Record]) -> str:
    names = sorted({name for r in found for name in r["figures"] or {}})
    measured = any(r["seconds"] is not None for r in found)
    columns = ["contestant", "precision"]
    columns += ["time", "95 % of calls", "x", "interval of x", "spread"] if measured else []
    columns += ["memory, MB"] if any(r["memory"] for r in found) else []
    rows = []
    for r in sorted(found, key=lambda r: (str(r["precision"]), r["ratio"] or 0)):
        cells = [r["contestant"], r["precision"]]
        if measured:
            interval = f"{r['ratio_low']:.2f} to {r['ratio_high']:.2f}" if r["ratio_low"] is not None else ""
            cells += [
                duration(r["seconds"]) if r["seconds"] is not None else "",
                duration(r["p95"]) if r["p95"] else "",
            ]
            cells += [times(r["ratio"]) if r["ratio"] is not None else "", interval]
            cells.append(f"{r['spread']:.0%}" if r["spread"] is not None else "")
        if "memory, MB" in columns:
            cells.append(f"{r['memory'] / 1e6:,.0f}" if r["memory"] else "")
        cells += [f"{value:,.4g}" if (value := (r["figures"] or {}).get(name)) is not None else "" for name in names]
        rows.append(cells)
    return table([*columns, *(name.replace("_", " ") for name in names)], rows)


def groups(found: Iterable[Record], *names: str) -> dict[tuple[str, ...], list[Record]]:
    """Records by the values of some fields, in the order of their first."""
    by: dict[tuple[str, ...], list[Record]] = {}
    for r in found:
        by.setdefault(tuple(json.dumps(r[name], sort_keys=True) for name in names), []).append(r)
    return by


def better(found: Sequence[Record]) -> list[str]:
    """In words: the peers that take less time than bertnli in the same work, in the same or a better precision."""
    lines = []
    for rows in groups(found, "machine", "threads", "suite", "work", "parameters").values():
        own = {r["precision"]: r["seconds"] for r in rows if r["contestant"] == "bertnli" and r["seconds"]}
        for r in filter(is_peer, rows):
            precision = "" if r["precision"] == "exact" else f" in {r['precision']}"
            who, where = f"{r['work']}, {sizes(r)}: {r['contestant']}{precision}", f"on {r['machine']}"
            if r["ratio"] is not None and r["ratio"] < 1:
                interval = f" ({r['ratio_low']:.2f} to {r['ratio_high']:.2f})" if r["ratio_low"] is not None else ""
                lines.append(f"{who} takes {times(r['ratio'])} x{interval} {where}")
            coarser = PRECISIONS[PRECISIONS.index(r["precision"]) + 1 :] if r["precision"] in PRECISIONS else ()
            for precision in coarser:
                if r["seconds"] and r["seconds"] < own.get(precision, 0):
                    lines.append(
                        f"{who} takes {times(r['seconds'] / own[precision])} x of bertnli in {precision} {where}"
                    )
    return lines


def known() -> list[str]:
    """The hand-written list of docs/measured.md."""
    text = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8").partition("## Where others are better")[2]
    return [" ".join(item.split()) for item in re.split(r"^- ", text.partition("\n## ")[0], flags=re.M)[1:]]


def missing(found: Sequence[Record]) -> str:
    """The contestants that did not take part, and why; each reason once."""
    reasons: dict[tuple[str, str], set[str]] = {}
    for r in found:
        if r["missing"]:
            reasons.setdefault((r["contestant"], r["missing"]), set()).add(r["precision"])
    items = (f"{name} ({', '.join(sorted(precisions))}): {reason}" for (name, reason), precisions in reasons.items())
    listed = "".join(f"<li class=note>{html.escape(item)}</li>" for item in items)
    return f"<details><summary>not measured</summary><ul>{listed}</ul></details>" if listed else ""


def page(found: Sequence[Record]) -> str:
    body = [
        f"<h1>bertnli, measured</h1>{EXPLANATION}<h2>Where others are better</h2>",
        listed(better(found)),
        "<p>Known beside the records:</p>",
        listed(known()),
    ]
    for rows in groups(found, "machine", "threads").values():
        last = max(rows, key=lambda r: str(r["date"] or ""))
        versions = ", ".join(f"{name} {v}" for name, v in (last["versions"] or {}).items())
        body.append(
            f"<h2>{html.escape(last['machine'])}, {last['threads']} threads</h2><p class=note>{html.escape(versions)}"
        )
        body.append(f"; commit {last['commit']}, {last['date']}</p>" if last["commit"] else "</p>")
        for suite in sorted({r["suite"] for r in rows}, key=SUITES.index):
            of_suite = [r for r in rows if r["suite"] == suite]
            body.append(f"<h3>{suite.replace('_', ' ')}</h3>")
            if suite == "scaling":
                body.append(grown(of_suite))
            for part in groups((r for r in of_suite if not r["missing"]), "work", "parameters").values():
                title = f"{part[0]['work']}: {sizes(part[0])}"
                is_open = " open" * (suite == "end_to_end")
                body.append(f"<details{is_open}><summary>{html.escape(title)}{summary(part)}</summary>")
                body.append(f"{plot_of(title, part)}{table_of(part)}</details>")
            body.append(missing(of_suite))
    return f"<!doctype html><meta charset=utf-8><title>bertnli, measured</title><style>{STYLE}</style>{''.join(body)}"


def listed(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def summary(part: Sequence[Record]) -> str:
    """The fastest peer of each precision."""
    best: dict[str, Record] = {}
    for r in part:
        if (
            r["ratio"] is not None
            and is_peer(r)
            and r["ratio"] < best.get(r["precision"], {"ratio": math.inf})["ratio"]
        ):
            best[r["precision"]] = r
    text = "; ".join(f"{p}: {html.escape(r['contestant'])} {times(r['ratio'])} x" for p, r in sorted(best.items()))
    return f" <b>{text}</b>" if text else ""


def picture(found: Sequence[Record]) -> str:
    """The README's: training steps and inference in batches on one machine, beside D2L and the fastest peers."""
    here = [r for r in found if r["machine"].startswith(README_MACHINE) and r["ratio"] is not None]
    bars: list[Bar] = []
    for model, precision in ((m, p) for m in MODELS for p in PRECISIONS[:2]):
        of_work = {
            r["contestant"]: r["ratio"]
            for r in here
            if r["work"] == "training step" and r["precision"] == precision
            and r["parameters"]["model"] == model and r["parameters"]["pairs"] == BATCHES[model]
        }  # fmt: skip
        for peer, color in (("transformers, buckets", BLUE), ("D2L (float32)", GREY)):
            if peer in of_work:
                label = f"{MODELS[model]} {precision}, {peer.partition(',')[0]}"
                bars.append((label, of_work[peer], f"{times(of_work[peer])} x", color))
    scores: list[Bar] = []
    for model, precision in ((m, p) for m in MODELS for p in PRECISIONS):
        ratios = [
            (r["ratio"], r["contestant"])
            for r in here
            if r["work"] == "encoded pairs to scores" and r["precision"] == precision and is_peer(r)
            and r["parameters"]["model"] == model and r["parameters"]["pairs"] == BATCHES[model]
        ]  # fmt: skip
        if ratios:
            ratio, peer = min(ratios)
            scores.append((f"{MODELS[model]} {precision}", ratio, f"{times(ratio)} x  {peer}", BLUE))
    left = bar_chart("Training step: times as long as bertnli", bars, 190, 520)
    right = bar_chart("Inference: the fastest peer", scores, 130, 420)
    height = max(int(re.findall(r'height="(\d+)"', chart)[0]) for chart in (left, right))
    right = right.replace("<svg ", '<svg x="520" ', 1)
    size = f'width="940" height="{height}"'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 940 {height}" {size}><rect {size} fill="#fff"/>'
    return f"{start}\n{left}\n{right}\n</svg>\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of records (default: benchmarks/results)")
    parser.add_argument(
        "--output", type=Path, default=RUNS / "report.html", help="page to write (default: runs/bench/report.html)"
    )
    parser.add_argument("--svg", type=Path, help="file to write the README's picture to, docs/speed.svg")
    args = parser.parse_args()
    found = load_records(args.results)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(page(found), encoding="utf-8")
    print(f"{len(found)} records: {args.output}")
    if args.svg:
        args.svg.write_text(picture(found), encoding="utf-8")


if __name__ == "__main__":
    main()

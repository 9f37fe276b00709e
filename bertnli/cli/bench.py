"""`bertnli bench`: how fast this machine encodes, scores and trains; with --full the suites of a checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import bertnli
from bertnli.bench.machine import machine
from bertnli.bench.measure import WORKS, measure
from bertnli.bench.race import Record, duration
from bertnli.cli.reports import print_json


def bench(args: SimpleNamespace) -> None:
    if args.full:
        _run_suites(args)
        return
    print(machine(), flush=True)
    for records in measure(args.work or WORKS, args.size, args.rounds, args.pairs):
        _print(records)
        for record in records:
            print_json(args, record)


def _print(records: list[Record]) -> None:
    """A line for each contestant: what it does in a second, its time, and its ratio to bertnli."""
    first = records[0]
    print(f"{first['work']}{' of ' + model if (model := first['parameters'].get('model')) else ''}")
    for r in records:
        name = f"  {r['contestant']} {r['precision']}".replace(" exact", "").ljust(20)
        if r["missing"]:
            print(f"{name} left out: {r['missing']}")
            continue
        line = f"{name} {r['parameters']['pairs'] / r['seconds']:12,.0f} pairs/s {duration(r['seconds']):>12}"
        if r["ratio"] is not None and r["contestant"] != "bertnli":
            line += f"  {r['ratio']:.1f} times bertnli's time ({r['ratio_low']:.1f} to {r['ratio_high']:.1f})"
        print(line, flush=True)


def _run_suites(args: SimpleNamespace) -> None:
    """The suites of the checkout that this package is in, and their page."""
    root = Path(bertnli.__file__).resolve().parents[1]
    if not (root / "benchmarks" / "conftest.py").exists():
        raise ValueError(
            "--full needs a checkout of bertnli with its folder benchmarks; install it by: pip install -e ."
        )
    for command in (
        ["-m", "pytest", "-q", "benchmarks", *(["--quick"] if args.quick else [])],
        ["benchmarks/report.py"],
    ):
        if subprocess.run([sys.executable, *command], cwd=root, stdout=sys.stderr if args.json else None).returncode:
            raise RuntimeError(f"{' '.join(command)} failed; its output is above")

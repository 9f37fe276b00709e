"""Training beside processes that keep the cores busy: seconds for some steps, by how OpenMP's threads wait.

    python benchmarks/bench_busy.py [--busy 0 1 2] [--batch 16] [--steps 30] [--rounds 3]

default      OpenMP's own setting: threads spin for milliseconds
bertnli      what `import bertnli` sets if it comes before torch
passive      OMP_WAIT_POLICY=passive: threads sleep at once
one thread   nothing to wait for
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SETTINGS: dict[str, dict[str, str]] = {
    "default": {"BERTNLI_BENCH_TORCH_FIRST": "1"},  # torch loads OpenMP before bertnli can set it
    "bertnli": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
STEPS = """
import os, sys, time
sys.path[:0] = sys.argv[1:3]
if "BERTNLI_BENCH_TORCH_FIRST" in os.environ:
    import torch
import bertnli
from compare import classifier, snli_like
batch, steps = int(sys.argv[3]), int(sys.argv[4])
model, data = classifier("small"), snli_like(batch * steps)
for _ in range(2):  # the first one warms up
    start = time.perf_counter()
    bertnli.fit(model, data, epochs=1, batch_size=batch, progress=False)
print(time.perf_counter() - start)
"""


def seconds(setting: str, batch: int, steps: int) -> float:
    """Seconds of `steps` training steps of bert.small in a new process with a setting."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, "-c", STEPS, str(HERE.parent), str(HERE), str(batch), str(steps)]
    done = subprocess.run(command, env=environment | SETTINGS[setting], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="busy processes (default: 0 1 2)")
    parser.add_argument("--batch", type=int, default=16, help="pairs a step (default: 16)")
    parser.add_argument("--steps", type=int, default=30, help="steps (default: 30)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in turn over the settings (default: 3)")
    a = parser.parse_args()
    print(f"{'busy processes':16}" + "".join(f"{name:>12}" for name in SETTINGS))
    for count in a.busy:
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
        try:
            times = [[seconds(name, a.batch, a.steps) for name in SETTINGS] for _ in range(a.rounds)]
        finally:
            for process in busy:
                process.kill()
        print(f"{count:<16}" + "".join(f"{statistics.median(column):11.2f}s" for column in zip(*times, strict=True)))


if __name__ == "__main__":
    main()

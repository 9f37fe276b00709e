"""Inference beside ONNX Runtime, OpenVINO, CTranslate2, torch's dynamic int8 and `transformers`.

    python benchmarks/bench_inference.py [--shapes small minilm base] [--batch N] [--rounds 7] [--results DIR]

Every contestant has the same weights and scores the same SNLI pairs: classes' scores from token ids. Ours is
`bertnli.score` on encoded pairs, batching included. The peers start from tensors that are padded already, in their best
shape: rows sorted by length and run in eight groups, each padded to its own longest row. Their scores are checked
against `transformers` in float32, by the tolerance of their precision, before anything is timed.

Each contestant lives in a process of its own, so that no pool of threads spins beside another. The processes take
turns, a short pause between them; a round times each once, and a ratio is the median over the rounds of its time over
ours. A batch of one pair is the latency.
Peers that cannot be built are named with the reason and left out. A precision's rivals are the peers of the same or a
better one. The package index has all of them: onnx onnxscript onnxruntime openvino ctranslate2.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from bench_attention import snli_lengths  # noqa: E402

from bertnli import BERTClassifier, BERTConfig, BERTModel, EncodedPairs, score  # noqa: E402
from bertnli.checkpoint import _to_huggingface  # noqa: E402

VOCABULARY = 30522
# hidden, feed-forward, heads, layers, batch
SHAPES = {
    "small": (256, 512, 4, 2, 512),
    "minilm": (384, 1536, 12, 6, 128),
    "base": (768, 3072, 12, 12, 64),
}
CLASSES = ("fp32", "bf16", "int8")  # from the best to the coarsest
TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2, "int8": 0.15}  # of the largest score
PEERS = [
    *("transformers fp32", "transformers bf16", "torch dynamic int8", "onnxruntime fp32", "onnxruntime int8"),
    *("openvino fp32", "openvino bf16", "openvino int8", "ctranslate2 fp32", "ctranslate2 bf16", "ctranslate2 int8"),
]
GROUPS = 8
EXPORTS = ROOT / "runs" / "inference"  # the peers' own files, kept: remove the folder when a peer's version changes

Padded = tuple[np.ndarray, np.ndarray, np.ndarray]  # ids, segments, lens of a group
Run = Callable[[], np.ndarray]


class Problem:
    """One model and one batch, the same in every process."""

    def __init__(self, shape: str, batch: int) -> None:
        hidden, inner, heads, layers, _ = SHAPES[shape]
        torch.manual_seed(0)
        self.config = BERTConfig.original(
            VOCABULARY, num_hiddens=hidden, ffn_num_hiddens=inner, num_heads=heads, num_layers=layers, max_len=128,
            pretraining_heads=False,
        )  # fmt: skip
        self.model = BERTClassifier(BERTModel(self.config)).eval()
        with torch.no_grad():  # scores of a trained model's size
            self.model.output.weight.mul_(20)
        rng = np.random.default_rng(1)
        self.lens = np.array(snli_lengths(batch) if batch > 1 else [27])
        self.rows = [rng.integers(1000, VOCABULARY, n) for n in self.lens]

    def pairs(self) -> EncodedPairs:
        ids = torch.from_numpy(np.concatenate(self.rows).astype(np.int32))
        offsets = torch.from_numpy(np.cumsum([0, *self.lens]))
        first = torch.from_numpy((self.lens // 2).astype(np.int32))
        return EncodedPairs(ids, offsets, first, None, pad_id=0, max_len=128)

    def groups(self) -> Iterator[tuple[np.ndarray, Padded]]:
        for some in np.array_split(np.argsort(self.lens, kind="stable"), min(GROUPS, len(self.lens))):
            lens = self.lens[some]
            ids, segments = np.zeros((2, len(some), lens.max()), np.int64)
            for to, kinds, row in zip(ids, segments, some, strict=True):
                to[: self.lens[row]] = self.rows[row]
                kinds[self.lens[row] // 2 : self.lens[row]] = 1
            yield some, (ids, segments, lens)

    def by_groups(self, function: Callable[[Any], np.ndarray], prepare: Callable[[Padded], Any]) -> Run:
        """`function` of every group's prepared input, in the rows' own order."""
        prepared = [(some, prepare(padded)) for some, padded in self.groups()]

        def run() -> np.ndarray:
            scores = np.empty((len(self.lens), 3), np.float32)
            for some, group in prepared:
                scores[some] = function(group)
            return scores

        return run

    def transformers(self, attention: str = "sdpa") -> Any:
        import transformers

        c = self.config
        config = transformers.BertConfig(
            vocab_size=VOCABULARY, hidden_size=c.num_hiddens, num_hidden_layers=c.num_layers,
            num_attention_heads=c.num_heads, intermediate_size=c.ffn_num_hiddens, num_labels=3,
            max_position_embeddings=c.max_len, attn_implementation=attention,
        )  # fmt: skip
        net = transformers.BertForSequenceClassification(config).eval()
        net.load_state_dict(_to_huggingface(self.model.state_dict(), "classifier"))
        return net


def mask_of(padded: Padded) -> np.ndarray:
    return (np.arange(padded[0].shape[1]) < padded[2][:, None]).astype(np.int64)


def named(padded: Padded) -> dict[str, np.ndarray]:
    return {"input_ids": padded[0], "attention_mask": mask_of(padded), "token_type_ids": padded[1]}


def tensors(padded: Padded) -> dict[str, Tensor]:
    return {name: torch.from_numpy(x) for name, x in named(padded).items()}


# ---- contestants ----


def ours(problem: Problem, precision: str, threads: int, folder: Path) -> Run:
    pairs = problem.pairs()
    return lambda: score(problem.model, pairs, precision=precision, batch_size=1 << 20).numpy()


def transformers(problem: Problem, precision: str, threads: int, folder: Path) -> Run:
    net = problem.transformers()

    def function(group: dict[str, Tensor]) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return net(**group).logits.float().numpy()  # type: ignore[no-any-return]

    return problem.by_groups(function, tensors)


def torch_dynamic(problem: Problem, precision: str, threads: int, folder: Path) -> Run:
    net = torch.ao.quantization.quantize_dynamic(problem.transformers(), {torch.nn.Linear}, torch.qint8)

    def function(group: dict[str, Tensor]) -> np.ndarray:
        with torch.inference_mode():
            return net(**group).logits.numpy()  # type: ignore[no-any-return]

    return problem.by_groups(function, tensors)


def onnx_file(problem: Problem, folder: Path) -> Path:
    """The model in ONNX; the session fuses its attention, GELU and LayerNorm."""
    path = folder / "model.onnx"
    if path.exists():
        return path
    group = tensors(next(problem.groups())[1])
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    if len(group["input_ids"]) == 1:  # a dimension of 1 would become a constant
        group = {name: x.expand(2, -1).contiguous() for name, x in group.items()}
    torch.onnx.export(
        problem.transformers("eager"), (), path, kwargs=group, dynamo=True, verbose=False, external_data=False,
        input_names=list(group), output_names=["logits"], dynamic_shapes=dict.fromkeys(group, free),
    )  # fmt: skip
    return path


def onnxruntime(problem: Problem, precision: str, threads: int, folder: Path) -> Run:
    import onnxruntime as ort

    path = onnx_file(problem, folder)
    if precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        if not (folder / "int8.onnx").exists():
            quantize_dynamic(path, folder / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8)
        path = folder / "int8.onnx"
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return problem.by_groups(lambda group: session.run(["logits"], group)[0], named)


def openvino(problem: Problem, precision: str, threads: int, folder: Path) -> Run:
    import openvino as ov

    if precision == "int8":
        raise RuntimeError("int8 needs calibration by NNCF, which is not installed")
    group = tensors(next(problem.groups())[1])
    model = ov.convert_model(problem.transformers(), example_input=group)
    hints = {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.compile_model(model, "CPU", hints).create_infer_request()
    return problem.by_groups(lambda group: next(iter(request.infer(group, share_inputs=True).values())), named)


def ctranslate2(problem: Problem, precision: str, threads: int, folder: Path) -> Run:
    import ctranslate2 as ct2
    import transformers as hf

    net = problem.transformers()
    if not (folder / "ct2").exists():
        net.bert.save_pretrained(folder / "hf")
        words = [f"w{i}" for i in range(VOCABULARY)]
        words[0], words[100:104] = "[PAD]", ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        (folder / "hf" / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
        hf.BertTokenizer(str(folder / "hf" / "vocab.txt")).save_pretrained(folder / "hf")
        hf.BertConfig.position_embedding_type = "absolute"  # which the converter asks for, and transformers 5 dropped
        ct2.converters.TransformersConverter(str(folder / "hf")).convert(str(folder / "ct2"), force=True)
    kind = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}[precision]
    encoder = ct2.Encoder(str(folder / "ct2"), device="cpu", compute_type=kind, intra_threads=threads)
    weight, bias = (t.detach().numpy() for t in (net.classifier.weight, net.classifier.bias))

    def prepare(padded: Padded) -> tuple[Any, ...]:
        ids, lens = (ct2.StorageView.from_array(x.astype(np.int32)) for x in (padded[0], padded[2]))
        return ids, lens, padded[1].tolist()

    def function(group: tuple[Any, ...]) -> np.ndarray:
        pooled = encoder.forward_batch(group[0], group[1], token_type_ids=group[2]).pooler_output
        if pooled.dtype != ct2.DataType.float32:
            pooled = pooled.to(ct2.DataType.float32)
        return np.asarray(np.array(pooled) @ weight.T + bias)

    return problem.by_groups(function, prepare)


BUILDERS: dict[str, Callable[[Problem, str, int, Path], Run]] = {
    "ours": ours,
    "transformers": transformers,
    "torch dynamic": torch_dynamic,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "ctranslate2": ctranslate2,
}


def worker(pipe: Connection, name: str, shape: str, batch: int, threads: int) -> None:
    """Build a contestant, send its scores, then its seconds for each number of calls asked for."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    family, precision = name.rsplit(" ", 1)
    folder = EXPORTS / shape
    folder.mkdir(parents=True, exist_ok=True)
    with open(os.devnull, "w") as nowhere:
        try:
            with redirect_stdout(nowhere):
                run = BUILDERS[family](Problem(shape, batch), precision, threads, folder)
                pipe.send(run())
        except Exception as error:
            reason = str(error).strip().splitlines()
            pipe.send(f"{type(error).__name__}: {reason[0][:160] if reason else ''}")
            return
        while calls := pipe.recv():
            begun = time.perf_counter()
            for _ in range(calls):
                run()
            pipe.send((time.perf_counter() - begun) / calls)


class Contestant:
    def __init__(self, name: str, shape: str, batch: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.name, self.precision = name, name.rsplit(" ", 1)[1]
        self.process = context.Process(target=worker, args=(theirs, name, shape, batch, threads))
        self.process.start()
        theirs.close()
        try:
            self.found: Any = self.pipe.recv()  # scores, or why there are none
        except EOFError:
            self.found = "the process ended"

    def seconds(self, calls: int) -> float:
        self.pipe.send(calls)
        return float(self.pipe.recv())

    def end(self) -> None:
        if not isinstance(self.found, str):
            self.pipe.send(0)
        self.process.join()


@contextmanager
def field(shape: str, batch: int, threads: int, peers: list[str]) -> Iterator[list[Contestant]]:
    """The contestants whose scores are right."""
    made: list[Contestant] = []
    try:
        reference: np.ndarray | None = None
        for name in ["transformers fp32", *(f"ours {p}" for p in CLASSES), *peers]:
            if name in (c.name for c in made):
                continue
            made.append(c := Contestant(name, shape, batch, threads))
            if reference is None:
                assert not isinstance(c.found, str), c.found
                reference = c.found
            if isinstance(c.found, str):
                print(f"  {name} is left out: {c.found}", flush=True)
                continue
            error = float(np.abs(c.found - reference).max() / np.abs(reference).max())
            if error > TOLERANCE[c.precision]:
                print(f"  {name} is left out: its scores differ by {error:.1e} of the largest", flush=True)
                c.end()
                c.found = "wrong"
        yield [c for c in made if not isinstance(c.found, str)]
    finally:
        for c in made:
            c.end()


def compare(shape: str, batch: int, threads: int, rounds: int, peers: list[str]) -> dict[str, Any]:
    with field(shape, batch, threads, peers) as contestants:
        calls = {c.name: max(1, round(0.15 / c.seconds(1))) for c in contestants}
        seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
        for _ in range(rounds):
            for c in contestants:
                time.sleep(0.02)  # the last one's threads go to sleep
                c.seconds(1)
                seconds[c.name].append(c.seconds(calls[c.name]))
    row: dict[str, Any] = {"shape": shape, "batch": batch, "threads": threads}
    for precision in CLASSES:
        mine = seconds[f"ours {precision}"]
        allowed = CLASSES[: CLASSES.index(precision) + 1]
        ratios = {
            name: statistics.median(t / o for t, o in zip(times, mine, strict=True))
            for name, times in seconds.items()
            if not name.startswith("ours") and name.rsplit(" ", 1)[1] in allowed
        }
        best = min(ratios, key=lambda name: ratios[name])
        row[precision] = {"seconds": statistics.median(mine), "best": best, "ratio": ratios[best], "ratios": ratios}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batch", type=int, nargs="+", help="pairs (default: 512, 128 and 64 by shape, and 1)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7, help="0 only exports the peers' files and checks their scores")
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=PEERS)
    parser.add_argument("--results", type=Path, help="folder for inference_<shape>.json and .md")
    args = parser.parse_args()
    processor = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")),
        platform.processor(),
    )
    machine = f"{processor}, {args.threads} threads, torch {torch.__version__}, {torch.ops.bertnli.cpu_isa()}"
    print(machine)
    for shape in args.shapes:
        rows = []
        for batch in args.batch or (SHAPES[shape][-1], 1):
            if not args.rounds:
                with field(shape, batch, args.threads, args.peers) as contestants:
                    print(f"{shape} batch {batch}: {len(contestants)} contestants agree", flush=True)
                continue
            row = compare(shape, batch, args.threads, args.rounds, args.peers)
            rows.append(row)
            for precision in CLASSES:
                r = row[precision]
                others = "  ".join(f"{name} x{x:.2f}" for name, x in sorted(r["ratios"].items(), key=lambda i: i[1]))
                print(f"{shape:6} batch {batch:4} {precision} ours {r['seconds'] * 1e3:9.3f} ms   {others}", flush=True)
        if args.results:
            args.results.mkdir(parents=True, exist_ok=True)
            out = {"machine": machine, "rows": rows}
            (args.results / f"inference_{shape}.json").write_text(json.dumps(out, indent=2) + "\n", encoding="utf-8")
            (args.results / f"inference_{shape}.md").write_text(table(machine, rows), encoding="utf-8")


def table(machine: str, rows: list[dict[str, Any]]) -> str:
    lines = [
        f"Inference, {machine}: times of the peers over ours (medians of ratios).",
        "",
        "| shape, pairs | precision | ours, ms | best peer of the same or a better precision | all |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        for precision in CLASSES:
            r = row[precision]
            others = ", ".join(f"{name} {x:.2f}" for name, x in sorted(r["ratios"].items(), key=lambda i: i[1]))
            lines.append(
                f"| {row['shape']}, {row['batch']} | {precision} | {r['seconds'] * 1e3:.3f} | "
                f"{r['best']} {r['ratio']:.2f} | {others} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()

"""Inference beside ONNX Runtime, OpenVINO, CTranslate2, torch's dynamic int8 and `transformers`.

    python benchmarks/bench_inference.py [--shapes small minilm base] [--batch N] [--rounds 7] [--json FILE]

Every contestant has the same weights and scores the same SNLI pairs: classes' scores from token ids. Ours is
`bertnli.score` on encoded pairs, batching included. The peers start from tensors that are padded already, in their best
shape: rows sorted by length and run in eight groups, each padded to its own longest row. ONNX Runtime gets the graph
that its own optimizer for BERT fuses, OpenVINO's int8 model is calibrated by NNCF on these pairs. Their scores are
checked against `transformers` in float32, by the tolerance of their precision, before anything is timed.

A batch of one pair is the latency. It is measured from the two strings to probabilities too: ours is `bertnli.predict`,
the peers get their ids from `tokenizers`.

Each contestant lives in a process of its own, so that no pool of threads spins beside another. The processes take
turns, a short pause between them; a round times each once, and a ratio is the median over the rounds of its time over
ours.
Peers that cannot be built are named with the reason and left out. A precision's rivals are the peers of the same or a
better one. The package index has all of them: onnx onnxruntime openvino nncf ctranslate2 tokenizers.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from bench_attention import snli_lengths  # noqa: E402
from bench_encoder import machine  # noqa: E402

from bertnli import BERTClassifier, BERTConfig, BERTModel, EncodedTexts, WordPieceTokenizer, predict, score  # noqa: E402
from bertnli.checkpoint.huggingface import to_huggingface  # noqa: E402

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
Peer = tuple[Callable[[Padded], Any], Callable[[Any], np.ndarray]]  # a group's input, and its scores from that
WORDS = ["[PAD]", *(f"w{i}" for i in range(1, 100)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += [f"w{i}" for i in range(len(WORDS), VOCABULARY)]


class Problem:
    """One model, the same in every process."""

    def __init__(self, shape: str) -> None:
        hidden, inner, heads, layers, self.batch = SHAPES[shape]
        self.config = BERTConfig.original(
            VOCABULARY, num_hiddens=hidden, ffn_num_hiddens=inner, num_heads=heads, num_layers=layers, max_len=128,
            pretraining_heads=False,
        )  # fmt: skip

    @cached_property
    def model(self) -> BERTClassifier:
        torch.manual_seed(0)
        model = BERTClassifier(BERTModel(self.config)).eval()
        with torch.no_grad():  # scores of a trained model's size
            model.output.weight.mul_(20)
        return model

    def transformers(self, attention: str = "sdpa") -> Any:
        import transformers

        c = self.config
        config = transformers.BertConfig(
            vocab_size=VOCABULARY, hidden_size=c.num_hiddens, num_hidden_layers=c.num_layers,
            num_attention_heads=c.num_heads, intermediate_size=c.ffn_num_hiddens, num_labels=3,
            max_position_embeddings=c.max_len, attn_implementation=attention,
        )  # fmt: skip
        net = transformers.BertForSequenceClassification(config).eval()
        net.load_state_dict(to_huggingface(self.model.state_dict(), "classifier"))
        return net


class Pairs:
    """The inputs: SNLI's lengths, random tokens."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(1)
        self.lens = np.array(snli_lengths(count) if count > 1 else [27])
        self.rows = [rng.integers(1000, VOCABULARY, n) for n in self.lens]
        for row, n in zip(self.rows, self.lens, strict=True):
            row[0], row[n // 2 - 1], row[n - 1] = (WORDS.index(x) for x in ("[CLS]", "[SEP]", "[SEP]"))

    def texts(self) -> tuple[str, str]:
        """Two strings whose tokens the first row has."""
        row, middle = self.rows[0], self.lens[0] // 2
        return " ".join(WORDS[i] for i in row[1 : middle - 1]), " ".join(WORDS[i] for i in row[middle:-1])

    def encoded(self) -> EncodedTexts:
        ids = torch.from_numpy(np.concatenate(self.rows).astype(np.int32))
        offsets = torch.from_numpy(np.cumsum([0, *self.lens]))
        first = torch.from_numpy((self.lens // 2).astype(np.int32))
        return EncodedTexts(ids, offsets, first, None, pad_id=0, max_len=128)

    def groups(self) -> Iterator[tuple[np.ndarray, Padded]]:
        for some in np.array_split(np.argsort(self.lens, kind="stable"), min(GROUPS, len(self.lens))):
            lens = self.lens[some]
            ids, segments = np.zeros((2, len(some), lens.max()), np.int64)
            for to, kinds, row in zip(ids, segments, some, strict=True):
                to[: self.lens[row]] = self.rows[row]
                kinds[self.lens[row] // 2 : self.lens[row]] = 1
            yield some, (ids, segments, lens)

    def by_groups(self, prepare: Callable[[Padded], Any], function: Callable[[Any], np.ndarray]) -> Run:
        """`function` of every group's prepared input, in the rows' own order."""
        prepared = [(some, prepare(padded)) for some, padded in self.groups()]

        def run() -> np.ndarray:
            scores = np.empty((len(self.lens), 3), np.float32)
            for some, group in prepared:
                scores[some] = function(group)
            return scores

        return run

    def from_text(self, prepare: Callable[[Padded], Any], function: Callable[[Any], np.ndarray], folder: Path) -> Run:
        """Probabilities from the two strings."""
        import tokenizers

        (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
        encode = tokenizers.BertWordPieceTokenizer(str(folder / "vocab.txt")).encode
        texts = self.texts()

        def run() -> np.ndarray:
            row = encode(*texts)
            ids, segments = np.array([row.ids]), np.array([row.type_ids])
            scores = function(prepare((ids, segments, np.array([len(row.ids)]))))
            powers = np.exp(scores - scores.max())
            return np.asarray(powers / powers.sum())

        return run


def mask_of(padded: Padded) -> np.ndarray:
    return (np.arange(padded[0].shape[1]) < padded[2][:, None]).astype(np.int64)


def named(padded: Padded) -> dict[str, np.ndarray]:
    return {"input_ids": padded[0], "attention_mask": mask_of(padded), "token_type_ids": padded[1]}


def tensors(padded: Padded) -> dict[str, Tensor]:
    return {name: torch.from_numpy(x) for name, x in named(padded).items()}


# ---- contestants ----


def ours(problem: Problem, precision: str, pairs: Pairs, text: bool) -> Run:
    if not text:
        encoded = pairs.encoded()
        return lambda: score(problem.model, encoded, precision=precision, batch_size=1 << 20).numpy()
    tokenizer, texts = WordPieceTokenizer(WORDS), pairs.texts()

    def run() -> np.ndarray:
        (found,) = predict(problem.model, tokenizer, *texts, precision=precision)
        return np.array([list(found.probabilities.values())])

    return run


def transformers(problem: Problem, precision: str, threads: int, folder: Path) -> Peer:
    net = problem.transformers()

    def function(group: dict[str, Tensor]) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return net(**group).logits.float().numpy()  # type: ignore[no-any-return]

    return tensors, function


def torch_dynamic(problem: Problem, precision: str, threads: int, folder: Path) -> Peer:
    net = torch.ao.quantization.quantize_dynamic(problem.transformers(), {torch.nn.Linear}, torch.qint8)

    def function(group: dict[str, Tensor]) -> np.ndarray:
        with torch.inference_mode():
            return net(**group).logits.numpy()  # type: ignore[no-any-return]

    return tensors, function


def onnx_file(problem: Problem, folder: Path) -> Path:
    """The model in ONNX, its attention, GELU and LayerNorm fused by ONNX Runtime's optimizer for BERT."""
    from onnxruntime.transformers import optimizer

    path, plain = folder / "fused.onnx", folder / "plain.onnx"
    if path.exists():
        return path
    group = tensors(next(Pairs(problem.batch).groups())[1])
    torch.onnx.export(  # the older exporter: the optimizer finds its attention
        problem.transformers("eager"), tuple(group.values()), plain, dynamo=False, opset_version=17,
        input_names=list(group), output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in group},
    )  # fmt: skip
    heads, hidden = problem.config.num_heads, problem.config.num_hiddens
    fused = optimizer.optimize_model(str(plain), "bert", num_heads=heads, hidden_size=hidden, opt_level=0)
    fused.save_model_to_file(str(path))
    plain.unlink()
    return path


def onnxruntime(problem: Problem, precision: str, threads: int, folder: Path) -> Peer:
    import onnxruntime as ort

    path = onnx_file(problem, folder)
    if precision == "int8":
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        if not (folder / "int8.onnx").exists():
            quantize_dynamic(
                path, folder / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8,
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # shapes of fused nodes are unknown to it
            )  # fmt: skip
        path = folder / "int8.onnx"
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return named, lambda group: session.run(["logits"], group)[0]


def openvino(problem: Problem, precision: str, threads: int, folder: Path) -> Peer:
    import openvino as ov

    path = folder / ("openvino_int8.xml" if precision == "int8" else "openvino.xml")
    if not path.exists():
        groups = [named(group) for _, group in Pairs(problem.batch).groups()]
        example = {name: torch.from_numpy(x) for name, x in groups[0].items()}
        model = ov.convert_model(problem.transformers(), example_input=example)
        if precision == "int8":
            import nncf

            kind = nncf.ModelType.TRANSFORMER
            model = nncf.quantize(model, nncf.Dataset(groups), model_type=kind, subset_size=len(groups))
        ov.save_model(model, path, compress_to_fp16=False)
    hints = {
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(path, "CPU", hints).create_infer_request()
    return named, lambda group: next(iter(request.infer(group, share_inputs=True).values()))


def ctranslate2(problem: Problem, precision: str, threads: int, folder: Path) -> Peer:
    import ctranslate2 as ct2
    import transformers as hf

    if not (folder / "ct2").exists():
        net = problem.transformers()
        net.bert.save_pretrained(folder / "hf")
        (folder / "hf" / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
        hf.BertTokenizer(str(folder / "hf" / "vocab.txt")).save_pretrained(folder / "hf")
        hf.BertConfig.position_embedding_type = "absolute"  # which the converter asks for, and transformers 5 dropped
        ct2.converters.TransformersConverter(str(folder / "hf")).convert(str(folder / "ct2"), force=True)
        np.savez(folder / "classifier.npz", *(t.detach().numpy() for t in net.classifier.parameters()))
    kind = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}[precision]
    encoder = ct2.Encoder(str(folder / "ct2"), device="cpu", compute_type=kind, intra_threads=threads)
    weight, bias = np.load(folder / "classifier.npz").values()

    def prepare(padded: Padded) -> tuple[Any, ...]:
        ids, lens = (ct2.StorageView.from_array(x.astype(np.int32)) for x in (padded[0], padded[2]))
        return ids, lens, padded[1].tolist()

    def function(group: tuple[Any, ...]) -> np.ndarray:
        pooled = encoder.forward_batch(group[0], group[1], token_type_ids=group[2]).pooler_output
        if pooled.dtype != ct2.DataType.float32:
            pooled = pooled.to(ct2.DataType.float32)
        return np.asarray(np.array(pooled) @ weight.T + bias)

    return prepare, function


BUILDERS: dict[str, Callable[[Problem, str, int, Path], Peer]] = {
    "transformers": transformers,
    "torch dynamic": torch_dynamic,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "ctranslate2": ctranslate2,
}


def worker(pipe: Connection, name: str, shape: str, threads: int) -> None:
    """Build a contestant; then send its scores of each (pairs, from text) and its seconds for each number of calls."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    family, precision = name.rsplit(" ", 1)
    folder = EXPORTS / shape
    folder.mkdir(parents=True, exist_ok=True)
    problem = Problem(shape)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # contestants share what they export
        try:
            peer = None if family == "ours" else BUILDERS[family](problem, precision, threads, folder)
            pipe.send(None)
        except Exception as error:
            reason = str(error).strip().splitlines()
            pipe.send(f"{type(error).__name__}: {reason[0][:160] if reason else ''}")
            return
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
        while asked := pipe.recv():
            if isinstance(asked, tuple):
                pairs, text = Pairs(asked[0]), asked[1]
                if peer is None:
                    run = ours(problem, precision, pairs, text)
                else:
                    run = pairs.from_text(*peer, folder) if text else pairs.by_groups(*peer)
                pipe.send(run())
                continue
            begun = time.perf_counter()
            for _ in range(asked):
                run()
            pipe.send((time.perf_counter() - begun) / asked)


class Contestant:
    def __init__(self, name: str, shape: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.name, self.precision = name, name.rsplit(" ", 1)[1]
        self.process = context.Process(target=worker, args=(theirs, name, shape, threads))
        self.process.start()
        theirs.close()

    def flaw(self) -> str | None:
        """Waits until it is built; why it could not be."""
        try:
            return self.pipe.recv()  # type: ignore[no-any-return]
        except EOFError:
            return "the process ended"

    def scores(self, batch: int, text: bool) -> np.ndarray:
        self.pipe.send((batch, text))
        return np.asarray(self.pipe.recv())

    def seconds(self, calls: int) -> float:
        self.pipe.send(calls)
        return float(self.pipe.recv())


@contextmanager
def field(shape: str, threads: int, peers: list[str]) -> Iterator[list[Contestant]]:
    """The contestants that can be built, `transformers` in float32 the first."""
    names = dict.fromkeys(["transformers fp32", *(f"ours {p}" for p in CLASSES), *peers])
    made = [Contestant(name, shape, threads) for name in names]
    built: list[Contestant] = []
    try:
        for c in made:
            if flaw := c.flaw():
                print(f"  {c.name} is left out: {flaw}", flush=True)
            else:
                built.append(c)
        yield built
    finally:
        for c in made:
            with suppress(OSError):  # those that could not be built are gone
                c.pipe.send(0)
        for c in made:
            c.process.join()


def agreeing(contestants: list[Contestant], batch: int, text: bool) -> list[Contestant]:
    """Those whose scores are right."""
    found = [(c, c.scores(batch, text)) for c in contestants]
    reference = found[0][1]
    errors = [(c, float(np.abs(scores - reference).max() / np.abs(reference).max())) for c, scores in found]
    for c, error in errors:
        if error > TOLERANCE[c.precision]:
            print(f"  {c.name} is left out: its scores differ by {error:.1e} of the largest", flush=True)
    return [c for c, error in errors if error <= TOLERANCE[c.precision]]


def compare(contestants: list[Contestant], rounds: int) -> list[dict[str, Any]]:
    """For each precision our time, and the times of the peers of the same or a better one over ours."""
    calls = {c.name: max(1, round(0.1 / c.seconds(1))) for c in contestants}
    seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
    for _ in range(rounds):
        for c in contestants:
            time.sleep(0.1)  # the last one's threads go to sleep: ONNX Runtime's spin for some 30 ms first
            if calls[c.name] > 1:
                c.seconds(1)
            seconds[c.name].append(c.seconds(calls[c.name]))
    rows = []
    for precision in CLASSES:
        mine = seconds[f"ours {precision}"]
        allowed = CLASSES[: CLASSES.index(precision) + 1]
        ratios = {
            name: statistics.median(t / o for t, o in zip(times, mine, strict=True))
            for name, times in seconds.items()
            if not name.startswith("ours") and name.rsplit(" ", 1)[1] in allowed
        }
        ratios = dict(sorted(ratios.items(), key=lambda item: item[1]))
        rows.append({"precision": precision, "ms": statistics.median(mine) * 1e3, "ratios": ratios})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batch", type=int, nargs="+", help="pairs (default: 512, 128 and 64 by shape, and 1)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7, help="0 only exports the peers' files and checks their scores")
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=PEERS)
    parser.add_argument("--json", type=Path, help="append the figures here, one JSON object a line")
    args = parser.parse_args()
    described = machine(args.threads)
    print(described)
    for shape in args.shapes:
        batches = args.batch or [SHAPES[shape][-1], 1]
        with field(shape, args.threads, args.peers) as built:
            for count, text in [(n, text) for n in batches for text in (False, True) if n == 1 or not text]:
                contestants = agreeing(built, count, text)
                what = {"shape": shape, "batch": count, "from": "text" if text else "ids"}
                print(f"{shape}, {count} from {what['from']}: {len(contestants)} contestants agree", flush=True)
                timed = [c for c in contestants if c.name.startswith("ours") or c.name in args.peers]
                for row in compare(timed, args.rounds) if args.rounds else []:
                    others = "  ".join(f"{name} x{x:.2f}" for name, x in row["ratios"].items())
                    print(f"  {row['precision']} ours {row['ms']:9.3f} ms   {others}", flush=True)
                    if args.json:
                        with args.json.open("a", encoding="utf-8") as file:
                            file.write(
                                json.dumps({"machine": described, "threads": args.threads, **what, **row}) + "\n"
                            )


if __name__ == "__main__":
    main()

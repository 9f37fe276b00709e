"""The command `bertnli export`: a checkpoint in another format."""

from __future__ import annotations

import math
from types import SimpleNamespace

from bertnli import checkpoint
from bertnli.cli.loading import check_is_head, load_checkpoint
from bertnli.cli.reports import print_json
from bertnli.tasks.base import Head
from bertnli.tasks.load import load_encoded
from bertnli.text.encoded import EncodedTexts, encoded_texts
from bertnli.text.tokenizer import Tokenizer


def export(args: SimpleNamespace) -> None:
    model, tokenizer = load_checkpoint(args.model)
    if args.format == "onnx":
        _to_onnx(args, check_is_head(model, args.model), tokenizer)
        return
    if args.int8 or args.data is not None:
        raise ValueError(f"--int8 and --data are for --format onnx; found --format {args.format}")
    checkpoint.save_pretrained(model, args.output, tokenizer, format=args.format)
    print_json(args, {"format": args.format, "output": str(args.output)})
    print(f"{args.format}: {args.output}")


def _to_onnx(args: SimpleNamespace, model: Head, tokenizer: Tokenizer) -> None:
    sample: EncodedTexts | None = None
    if args.data is not None:
        data = load_encoded(
            args.data, model, tokenizer, split="test", limit=args.samples, labels=args.labels, columns=args.columns,
            text_columns=args.text_columns, label_column=args.label_column, separator=args.separator,
            encoding=args.encoding, delimiter=args.delimiter,
        )  # fmt: skip
        sample = encoded_texts(data, "data")
    checks = checkpoint.export_onnx(model, args.output, tokenizer, sample, num_samples=args.samples, int8=args.int8)
    kind = "sequences" if args.data is not None else "random sequences"
    compared = [{**vars(check), "file": str(check.file)} for check in checks]
    print_json(args, {"format": args.format, "output": str(args.output), "checks": compared})
    for check in checks:
        same = "" if math.isnan(check.agreement) else f", the same class in {check.agreement:.1%}"
        print(
            f"{check.file}: {check.examples} {kind} compared in ONNX Runtime, largest difference of an output "
            f"{check.difference:.1e}{same}"
        )

"""`bertnli distill`."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from bertnli.cli.loading import load, load_head, name_classes
from bertnli.cli.training_run import Run, dev_file, num_parameters, print_unused_precision, run_arguments
from bertnli.data.source import Source
from bertnli.data.texts import TextData
from bertnli.distillation.distill import distill as run_distillation
from bertnli.distillation.student import make_student, pruned_tokenizer
from bertnli.tasks.base import Head
from bertnli.tasks.load import read_inputs, shared_columns, texts_of
from bertnli.text.encoded import encoded_texts
from bertnli.text.tokenizer import Tokenizer, WordTokenizer
from bertnli.text.vocab import space_out_data


def distill(args: SimpleNamespace) -> None:
    teacher, teacher_tokenizer = load_head(args.teacher, args)
    names = name_classes(teacher, args.labels)
    data = load(args, teacher.task, args.train, "train", teacher_tokenizer, names)[: args.limit]
    dev_path = dev_file(args)
    dev = None if dev_path is None else load(args, teacher.task, dev_path, "dev", teacher_tokenizer, names)
    unlabelled = None if args.unlabelled is None else _load_unlabelled(args, teacher, teacher_tokenizer)
    texts = itertools.chain(texts_of(data), () if unlabelled is None else texts_of(unlabelled))
    torch.manual_seed(args.seed)
    tokenizer, token_ids = pruned_tokenizer(teacher_tokenizer, texts, args.min_freq)
    max_len = teacher.sequence_len(args.max_len)
    student = make_student(
        teacher,
        token_ids,
        num_hiddens=args.num_hiddens,
        ffn_num_hiddens=args.ffn_num_hiddens,
        num_heads=args.num_heads,
        num_layers=args.num_layers,
        layers=args.teacher_layers,
        sample=encoded_texts(teacher.encode(teacher_tokenizer, data[:1000], max_len, args.truncation), "train"),
        max_len=max_len,
    )
    student.settings["max_len"] = max_len
    large, small = num_parameters(teacher), num_parameters(student)
    print(
        f"teacher: {large / 1e6:.2f} million parameters; student: {small / 1e6:.2f}, {large / small:.1f} times fewer, "
        f"{len(tokenizer)} of {len(teacher_tokenizer)} tokens; {len(data)} labelled examples, "
        f"{0 if unlabelled is None else len(unlabelled)} unlabelled"
    )
    print_unused_precision(args)
    history = run_distillation(
        teacher, teacher_tokenizer, student, tokenizer, data, dev, args.options, unlabelled=unlabelled, max_len=max_len,
        truncation=args.truncation, temperature=args.temperature, hard=args.hard, soft=args.soft, hidden=args.hidden,
        hidden_layers=args.hidden_layers, **run_arguments(args, student, tokenizer),
    )  # fmt: skip
    path = Path(args.teacher)
    student.provenance["teacher"] = path.resolve().name if path.is_dir() else args.teacher
    dev_data = None if dev is None else student.encode(tokenizer, dev, max_len, args.truncation)
    Run(args, student, tokenizer, history, dev, dev_data).finish()


def _load_unlabelled(args: SimpleNamespace, model: Head, tokenizer: Tokenizer) -> Any:
    table = {"encoding": args.encoding, "delimiter": args.delimiter}
    columns = shared_columns(Source(args.unlabelled, **table), args.text_columns)
    examples = list(read_inputs(args.unlabelled, model, columns, **table))
    if not examples:
        raise ValueError(f"{args.unlabelled} has no examples")
    data = model.inputs(*zip(*examples, strict=True))
    return space_out_data(data) if isinstance(tokenizer, WordTokenizer) and isinstance(data, TextData) else data

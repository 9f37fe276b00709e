"""`bertnli pretrain`."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace

import torch

from bertnli.cli.loading import load_checkpoint
from bertnli.cli.training_run import Run, make_bert, make_tokenizer, print_unused_precision, run_arguments
from bertnli.encoder.bert import BERTModel
from bertnli.tasks.pretraining import BERTPretrainer, encode_paragraphs
from bertnli.text.tokenizer import Tokenizer
from bertnli.training.loop import fit
from bertnli.training.pretrain import read_paragraphs


def pretrain(args: SimpleNamespace) -> None:
    torch.manual_seed(args.seed)
    paragraphs = read_paragraphs(args.train)[: args.limit]
    bert, tokenizer = _start(args, paragraphs)
    model = BERTPretrainer(bert)
    max_len = min(args.max_len, bert.config.max_len)
    data = encode_paragraphs(
        tokenizer, paragraphs, max_len, whole_words=args.whole_words, copies=args.copies, seed=args.seed
    )
    dev = None
    if args.dev is not None:
        dev = encode_paragraphs(tokenizer, read_paragraphs(args.dev), max_len, whole_words=args.whole_words)
    print(
        f"{len(paragraphs)} paragraphs of {args.train} in {len(data)} sequences of {len(data.ids) / len(data):.1f} "
        f"tokens; {len(tokenizer)} tokens in the vocabulary"
    )
    print_unused_precision(args)
    history = fit(model, data, dev, args.options, **run_arguments(args, bert, tokenizer))
    bert.provenance["run"] = model.provenance["run"]
    Run(args, bert, tokenizer, history).finish()


def _start(args: SimpleNamespace, paragraphs: list[list[str]]) -> tuple[BERTModel, Tokenizer]:
    """The model that is trained: a new one with a vocabulary of the paragraphs, or the checkpoint's."""
    if args.scratch:
        tokenizer = make_tokenizer(args, chain.from_iterable(paragraphs))
        return make_bert(args, tokenizer, pretraining_heads=True), tokenizer
    model, tokenizer = load_checkpoint(args.model, args.dropout)
    if not isinstance(model, BERTModel):
        raise ValueError(f"{args.model} is a model of a task; pretraining goes on from an encoder with its heads")
    return model, tokenizer

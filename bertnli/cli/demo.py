"""`bertnli demo`: a generated corpus, a model trained on it, and three pairs that it answers."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from bertnli.cli.reports import print_epoch, print_json, print_kept_epoch
from bertnli.cli.training_run import Run, num_parameters
from bertnli.data.demo import write_demo_corpus
from bertnli.data.snli import SNLI_LABELS
from bertnli.encoder.bert import BERTModel
from bertnli.encoder.config import SIZES, BERTConfig
from bertnli.inference import predict as inference
from bertnli.tasks.classification import BERTClassifier
from bertnli.tasks.load import load_examples, texts_of
from bertnli.text.wordpiece import WordPieceTokenizer
from bertnli.training.callbacks import Callback
from bertnli.training.loop import fit

_TYPED = (  # what a visitor may type; the corpus has no teachers
    ("A man is sleeping.", "A person is asleep."),
    ("A teacher is drinking coffee.", "The teacher is asleep."),
    ("A girl is reading a book.", "A girl is reading a book in the park."),
)


def demo(args: SimpleNamespace) -> None:
    corpus = args.output / "corpus"
    write_demo_corpus(corpus, seed=args.seed, train=args.pairs)
    print(f"corpus: {args.pairs} generated training pairs in {corpus}")
    data = {split: load_examples(corpus, split=split) for split in ("train", "dev", "test")}
    torch.manual_seed(args.seed)
    tokenizer = WordPieceTokenizer.of_words(texts_of(data["train"]), min_freq=20)
    # The original variant learns faster from scratch, and a grammar has no noise that dropout would guard against.
    config = BERTConfig.original(len(tokenizer), **{**SIZES["bert.small"], "dropout": 0.0}, pretraining_heads=False)
    model = BERTClassifier(BERTModel(config), len(SNLI_LABELS), SNLI_LABELS)
    model.adapt(data["train"])
    print(f"model: bert.small-sized, random weights, {num_parameters(model) / 1e6:.1f} million parameters")
    dev_data = model.encode(tokenizer, data["dev"])
    history = fit(
        model,
        model.encode(tokenizer, data["train"]),
        dev_data,
        epochs=args.epochs,
        batch_size=16,
        lr=5e-4,
        seed=args.seed,
        progress=not args.quiet,
        callbacks=[Callback(on_epoch=lambda epoch: print_epoch(args, epoch))],
    )
    files = Run(args, model, tokenizer, history, data["dev"], dev_data).save()
    print_kept_epoch(history)
    figures = inference.evaluate(model, model.encode(tokenizer, data["test"]))
    print_json(args, {"test": figures})
    chance = 1 / len(SNLI_LABELS)
    print(f"test accuracy {figures['accuracy']:.3f} on {figures['examples']} pairs (chance is {chance:.3f})")
    for premise, hypothesis in _TYPED:
        (p,) = inference.predict(model, tokenizer, premise, hypothesis)
        print(f"  {premise}  {hypothesis}\n    -> {p.label} ({p.probabilities[p.label]:.2f})")
    print(f"{files}: {args.output}")

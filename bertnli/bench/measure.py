"""A short measurement of this machine: text encoded, pairs scored, training steps, beside transformers if installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from bertnli import ops
from bertnli.bench import training
from bertnli.bench import transformers as peer
from bertnli.bench.machine import versions_of
from bertnli.bench.race import Contestant, Record, contest
from bertnli.encoder.bert import BERTModel
from bertnli.encoder.config import BERTConfig
from bertnli.inference.predict import score
from bertnli.tasks.classification import BERTClassifier
from bertnli.text.encoded import EncodedTexts
from bertnli.text.wordpiece import WordPieceTokenizer

#: Sizes by the names that records give them: bert.small, MiniLM and BERT-base.
MODELS: dict[str, dict[str, Any]] = {
    "small": dict(num_hiddens=256, ffn_num_hiddens=512, num_heads=4, num_layers=2, dropout=0.1, max_len=512),
    "minilm": dict(num_hiddens=384, ffn_num_hiddens=1536, num_heads=12, num_layers=6, dropout=0.1, max_len=512),
    "base": dict(num_hiddens=768, ffn_num_hiddens=3072, num_heads=12, num_layers=12, dropout=0.1, max_len=512),
}
WORKS = ("text", "inference", "training")
_VOCAB_SIZE = 30522
#: Pairs that are a batch for throughput.
BATCHES = {"small": 512, "minilm": 128, "base": 64}


def random_pairs(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Premises and hypotheses of random words, as long as SNLI's: 14 and 8 words on average."""
    rng = np.random.default_rng(seed)
    words = np.array(["".join(map(chr, rng.integers(97, 123, n))) for n in rng.integers(2, 9, 8000)])
    means = np.log(np.array([[13.0], [7.5]]))
    lengths = np.clip(rng.lognormal(means, 0.35, (2, count)).round(), 2, 60).astype(int)
    first, second = (
        [" ".join(row) for row in np.split(words[rng.zipf(1.3, n.sum()) % len(words)], n.cumsum()[:-1])]
        for n in lengths
    )
    return first, second


def tokenizer_for(texts: Sequence[str]) -> WordPieceTokenizer:
    """A WordPiece tokenizer whose vocabulary has the words of `texts`."""
    return WordPieceTokenizer.of_words(texts, min_freq=1)


def classifier(model: str, vocab_size: int = _VOCAB_SIZE, num_labels: int = 3, d2l: bool = False) -> BERTClassifier:
    """A model of one of MODELS with random weights of seed 0; the original BERT's variant, or D2L's."""
    config = BERTConfig if d2l else BERTConfig.original
    torch.manual_seed(0)
    head = BERTClassifier(BERTModel(config(vocab_size, **MODELS[model], pretraining_heads=False)), num_labels).eval()
    with torch.no_grad():
        head.output.weight.mul_(20)  # outputs as large as a trained model's
    return head


def measure(
    works: Sequence[str] = WORKS, models: Sequence[str] = ("small", "minilm"), rounds: int = 5, pairs: int = 20_000
) -> Iterator[list[Record]]:
    """The records of each piece of work, as it ends.

    works    of WORKS
    models   of MODELS
    rounds   timed rounds
    pairs    pairs to encode; `models` score and train on fewer
    """
    first, second = random_pairs(pairs)
    tokenizer = tokenizer_for([*first, *second])
    labels = [i % 3 for i in range(pairs)]
    data = tokenizer.encode_pairs(first, second, labels=labels)
    if "text" in works:
        yield _text(tokenizer, first, second, rounds)
    for model in models:
        if "inference" in works:
            yield _inference(model, classifier(model, len(tokenizer)), data[: BATCHES[model]], rounds)
        if "training" in works:
            yield _training(model, data, rounds)


def _missing(library: str, precisions: Sequence[str]) -> dict[str, str]:
    """The contestants of a library that is not installed."""
    return {} if find_spec(library) else {f"{library} {p}": "not installed" for p in precisions}


def _text(tokenizer: WordPieceTokenizer, first: list[str], second: list[str], rounds: int) -> list[Record]:
    sample = first[:500], second[:500]
    missing = _missing("tokenizers", ["exact"])
    contestants = [
        Contestant(
            "bertnli",
            "exact",
            lambda: tokenizer.encode_pairs(first, second),
            lambda: tokenizer.encode_pairs(*sample, truncation="longest_first_hf").ids,
        )
    ]
    if not missing:
        from tokenizers import BertWordPieceTokenizer

        rust = BertWordPieceTokenizer({token: i for i, token in enumerate(tokenizer.tokens)})
        rust.enable_truncation(128)
        few = list(zip(first[:2000], second[:2000], strict=True))

        def ids() -> list[list[int]]:
            return [e.ids for e in rust.encode_batch(few[:500])]

        versions = versions_of(("tokenizers",))
        contestants.append(
            Contestant("tokenizers", "exact", lambda: rust.encode_batch(few), ids, len(few) / len(first), versions)
        )
    return contest("text", "pairs of strings to ids", contestants, rounds, missing, pairs=len(first))


def _inference(model: str, head: BERTClassifier, data: EncodedTexts, rounds: int) -> list[Record]:
    contestants = [
        Contestant("bertnli", p, partial(score, head, data, precision=p)) for p in _precisions(inference=True)
    ]
    missing = _missing("transformers", ["fp32"])
    if not missing:
        theirs, versions = peer.equal_model(head).eval(), versions_of(("transformers",))
        contestants.append(Contestant("transformers", "fp32", lambda: peer.scores_of(theirs, data), versions=versions))
    return contest("inference", "encoded pairs to scores", contestants, rounds, missing, model=model, pairs=len(data))


def _training(model: str, data: EncodedTexts, rounds: int, batch: int = 32) -> list[Record]:
    vocab_size, batches = int(data.ids.max()) + 1, training.shuffled(data, batch, 64)
    loops = [training.BertnliLoop(classifier(model, vocab_size), data, p) for p in _precisions(inference=False)]
    contestants = [training.contestant("bertnli", loop, batches) for loop in loops]
    missing = _missing("transformers", ["fp32"])
    if not missing:
        theirs = peer.equal_model(classifier(model, vocab_size))
        loop = training.PlainLoop(theirs, data, peer.forward_of(theirs, data))
        contestants.append(training.contestant("transformers", loop, batches))
        contestants[-1].versions = versions_of(("transformers",))
    try:
        return contest("training", "training step", contestants, rounds, missing, model=model, pairs=batch)
    finally:
        for own in loops:
            own.end()


def _precisions(inference: bool) -> list[str]:
    """Those that pay on this CPU, as `bertnli info` says."""
    if inference:
        return ["fp32", *(["bf16"] if ops.cpu_isa() != "plain" else []), "int8"]
    return ["fp32", *(["bf16"] if ops.cpu_multiplies_bf16() else [])]

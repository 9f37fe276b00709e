"""Distillation: a small student learns from a large teacher's outputs and vectors beside the labels.

Sources: Hinton, Vinyals and Dean 2015 (soft labels); Sun et al. 2019 (the `<cls>` vector as a further target).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertnli.batching import PackedBatch
from bertnli.heads import HEADS, BERTClassifier, BERTRegressor, Head
from bertnli.inference import check_labels, in_batches
from bertnli.model import BERTConfig, BERTEncoder, BERTModel
from bertnli.pairs import EncodedPairs
from bertnli.reader import PairData
from bertnli.tokenizer import Tokenizer, Truncation, Vocab, WordPieceTokenizer, WordTokenizer
from bertnli.train import History, fit


def pruned_tokenizer(tokenizer: Tokenizer, texts: Iterable[str], min_freq: int = 1) -> tuple[Tokenizer, Tensor]:
    """The tokenizer with only the tokens that `texts` have at least `min_freq` times, and their ids in the old one.

    Special tokens stay, and so do WordPiece's single characters, of which rarer words are then made. A text all of
    whose tokens are kept is tokenized as before.
    """
    counts: Counter[int] = Counter(tokenizer.encode_texts_with_offsets(list(texts)).ids.tolist())
    frequent = {token for token, count in counts.items() if count >= min_freq}
    if isinstance(tokenizer, WordPieceTokenizer):
        always = {i for i, token in enumerate(tokenizer.tokens) if len(token.removeprefix("##")) == 1}
        always |= {tokenizer.token_to_id(token) for token in WordPieceTokenizer.SPECIAL}
        kept = sorted(frequent | always)
        tokens = [tokenizer.tokens[i] for i in kept]
        pruned: Tokenizer = WordPieceTokenizer(tokens, tokenizer.lowercase, tokenizer.split_special_tokens)
        return pruned, torch.tensor(kept)
    always = {tokenizer.token_to_id(token) for token in ("<unk>", "<pad>", "<mask>", "<cls>", "<sep>")}
    kept = sorted(frequent | always)
    vocab = Vocab()
    vocab.idx_to_token = [tokenizer.id_to_token(i) for i in kept]
    vocab.token_to_idx = {token: i for i, token in enumerate(vocab.idx_to_token)}
    return WordTokenizer(vocab), torch.tensor(kept)


def make_student(
    teacher: Head,
    token_ids: Tensor,
    *,
    num_hiddens: int = 128,
    ffn_num_hiddens: int | None = None,
    num_heads: int | None = None,
    num_layers: int = 4,
    layers: Sequence[int] | None = None,
    max_len: int = 128,
) -> Head:
    """A smaller head of the teacher's task, variant and dropout.

    token_ids     the teacher's ids of the student's tokens (`pruned_tokenizer` gives them)
    num_hiddens   narrower than the teacher, the student's embeddings begin as the principal components of the teacher's
                  and the rest at random; as wide, it begins with the teacher's embeddings, hidden and output layer
    ffn_num_hiddens, num_heads   None means four times the width, and heads of 32; with `layers` the teacher's
    layers        the teacher's layers, from 0, that become the student's, which must then be as wide as the teacher

    Raises ValueError for layers that the teacher does not have, or another width with `layers`.
    """
    config, encoder = teacher.config, teacher.encoder
    if layers is not None:
        if num_hiddens != config.num_hiddens:
            raise ValueError(f"layers of the teacher are {config.num_hiddens} wide, the student is {num_hiddens}")
        if bad := [i for i in layers if not 0 <= i < config.num_layers]:
            raise ValueError(f"the teacher has layers 0 to {config.num_layers - 1}, not {bad[0]}")
        num_layers, ffn_num_hiddens, num_heads = len(layers), config.ffn_num_hiddens, config.num_heads
    if ffn_num_hiddens is None:
        ffn_num_hiddens = 4 * num_hiddens
    small: BERTConfig = replace(
        config,
        vocab_size=len(token_ids),
        num_hiddens=num_hiddens,
        ffn_num_hiddens=ffn_num_hiddens,
        num_heads=num_heads or max(1, num_hiddens // 32),
        num_layers=num_layers,
        max_len=min(max_len, config.max_len),
        pretraining_heads=False,
    )
    student = HEADS[teacher.task](BERTModel(small), teacher.output.out_features, teacher.label_names, teacher.dropout.p)
    student.settings.update(teacher.settings)
    own: BERTEncoder = student.encoder
    with torch.no_grad():
        tables = [encoder.token_embedding.weight[token_ids], encoder.segment_embedding.weight]
        tables.append(encoder.pos_embedding[0, : small.max_len])
        if num_hiddens == config.num_hiddens:
            own.load_state_dict({k: v for k, v in encoder.state_dict().items() if "_norm" in k}, strict=False)
            for mine, theirs in ((student.hidden, teacher.hidden), (student.output, teacher.output)):
                mine.load_state_dict(theirs.state_dict())
        elif num_hiddens < config.num_hiddens:
            centre = tables[0].mean(0)
            spread = tables[0] - centre
            directions = torch.linalg.eigh(spread.T @ spread).eigenvectors.flip(1)[:, :num_hiddens]
            tables = [table @ directions for table in (spread, *tables[1:])]
            factor = spread.std() / tables[0].std()
            tables = [table * factor for table in tables]
        if num_hiddens <= config.num_hiddens:
            own.token_embedding.weight.copy_(tables[0])
            own.segment_embedding.weight.copy_(tables[1])
            own.pos_embedding[0].copy_(tables[2])
        for block, i in zip(own.blks, layers or (), strict=False):
            block.load_state_dict(encoder.blks[i].state_dict())
    return student


def distill(
    teacher: Head,
    teacher_tokenizer: Tokenizer,
    student: Head,
    tokenizer: Tokenizer,
    train: PairData,
    dev: PairData | None = None,
    *,
    unlabelled: PairData | None = None,
    max_len: int = 128,
    truncation: Truncation = "longest_first",
    temperature: float = 2.0,
    hard: float = 0.5,
    soft: float = 0.5,
    hidden: float = 0.1,
    batch_size: int = 32,
    precision: str = "fp32",
    **options: Any,
) -> History:
    """Train `student` in place, on the labels and on what the teacher makes of the same texts.

    The loss is the mean over examples of `hard` times the task's own, where there is a label; `soft` times the
    divergence from the teacher's classes at `temperature`, times its square (for regression the squared difference from
    the teacher's number); and `hidden` times the mean squared difference between the vectors that the heads read, the
    student's projected to the teacher's width by a layer of its own. The teacher runs once over all texts, in eval
    mode.

    unlabelled    further texts, of which only the teacher says something
    options       for `fit`

    Raises ValueError for a task other than classification and regression, or heads of different tasks or classes.
    """
    if not isinstance(teacher, (BERTClassifier, BERTRegressor)):
        raise ValueError(f"only classification and regression are distilled, not {getattr(teacher, 'task', 'this')!r}")
    if (student.task, student.label_names) != (teacher.task, teacher.label_names):
        raise ValueError("teacher and student must be heads of the same task and classes")
    texts = [train] if unlabelled is None else [train, unlabelled]
    targets = []
    for data in texts:
        encoded = teacher.encode(teacher_tokenizer, data, min(max_len, teacher.config.max_len), truncation)
        vectors = in_batches(teacher, teacher.features, encoded, precision=precision).float()
        teacher.eval()
        with torch.no_grad():
            outputs = teacher.head(vectors).float()
        known = encoded.labels if data is train else torch.full((len(data),), torch.nan)
        if known is None:
            raise ValueError("train has no labels")
        parts = [known[:, None].float(), outputs.cpu(), *([vectors.cpu()] if hidden else [])]
        targets.append(torch.cat(parts, 1))
    premises = [text for data in texts for text in data.premises]
    if len({data.hypotheses is None for data in texts}) > 1:
        raise ValueError("training and unlabelled data must both be single texts, or both pairs")
    pairs_too = train.hypotheses is not None
    hypotheses = [text for data in texts for text in data.hypotheses or ()] if pairs_too else None
    whole = PairData(premises, hypotheses, None)
    max_len = min(max_len, student.config.max_len)
    pairs: EncodedPairs = student.encode(tokenizer, whole, max_len, truncation)
    pairs.labels = torch.cat(targets)
    held = None if dev is None else student.encode(tokenizer, dev, max_len, truncation)
    if held is not None:
        check_labels(held, "dev", student)
    pupil = _Pupil(student, teacher.config.num_hiddens if hidden else 0, temperature, hard, soft, hidden)
    history = fit(pupil, pairs, held, batch_size=batch_size, precision=precision, **options)
    student.eval()
    return history


class _Pupil(Head):
    """The student with the teacher's outputs as labels: float32 [N, 1 + C (+ H)], of each row its own label (NaN where
    there is none), the teacher's outputs and, for the hidden loss, the teacher's vector."""

    def __init__(self, student: Head, width: int, temperature: float, hard: float, soft: float, hidden: float) -> None:
        nn.Module.__init__(self)
        self.student = student
        self.project = nn.Linear(student.config.num_hiddens, width) if width else None
        self.weights = (hard, soft, hidden)
        self.temperature = temperature
        self.metric = student.metric

    @property
    def encoder(self) -> BERTEncoder:  # type: ignore[override]
        return self.student.encoder

    @property
    def dropout(self) -> nn.Dropout:  # type: ignore[override]
        return self.student.dropout

    def head(self, features: Tensor) -> Tensor:
        outputs = self.student.head(features)
        if not self.training or self.project is None:
            return outputs
        return torch.cat([outputs, self.project(features)], 1)

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        assert batch.labels is not None
        if not self.training:
            return self.student.loss(outputs, batch)
        width = self.student.output.out_features
        labels = batch.labels.to(outputs.dtype)
        own, target, vector = labels[:, :1], labels[:, 1 : 1 + width], labels[:, 1 + width :]
        scores, projected = outputs[:, :width], outputs[:, width:]
        hard, soft, hidden = self.weights
        known = ~own[:, 0].isnan()
        if isinstance(self.student, BERTClassifier):
            t = self.temperature
            loss = hard * F.cross_entropy(scores[known], own[known, 0].long(), reduction="sum")
            divergence = F.kl_div(
                (scores / t).log_softmax(1), (target / t).log_softmax(1), reduction="sum", log_target=True
            )
            loss = loss + soft * t**2 * divergence
        else:
            loss = hard * F.mse_loss(scores[known], own[known], reduction="sum")
            loss = loss + soft * F.mse_loss(scores, target, reduction="sum")
        if self.project is not None:
            loss = loss + hidden * F.mse_loss(projected, vector, reduction="none").mean(1).sum()
        return loss

    def flaw(self, labels: Tensor) -> str | None:
        return None if labels.dim() == 2 else self.student.flaw(labels)

    def metrics(self, outputs: Tensor, data: Any) -> dict[str, Any]:
        return self.student.metrics(outputs, data)

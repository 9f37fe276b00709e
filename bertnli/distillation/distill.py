"""Distillation: a small student learns from a large teacher's outputs and vectors beside the labels.

Sources: Hinton, Vinyals and Dean 2015 (soft labels); Sun et al. 2019 (vectors of the last layer and of inner ones).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertnli import ops
from bertnli.encoder.bert import BERTEncoder, BERTModel
from bertnli.encoder.config import BERTConfig
from bertnli.encoder.layers import EncoderBlock
from bertnli.inference.predict import check_labels, in_batches, tokens_per_sequence
from bertnli.runtime.cuda_graphs import ours
from bertnli.runtime.modes import eval_mode
from bertnli.tasks.base import HEADS, Head
from bertnli.text.batch import PackedBatch, ragged_index
from bertnli.text.encoded import EncodedTexts, encoded_texts
from bertnli.text.tokenizer import Tokenizer, Truncation, WordTokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer
from bertnli.training.loop import History, fingerprint, fit


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
    return WordTokenizer(Vocab.of([tokenizer.id_to_token(i) for i in kept])), torch.tensor(kept)


def make_student(
    teacher: Head,
    token_ids: Tensor,
    *,
    num_hiddens: int = 128,
    ffn_num_hiddens: int | None = None,
    num_heads: int | None = None,
    num_layers: int | None = None,
    layers: Sequence[int] | None = None,
    sample: EncodedTexts | None = None,
    max_len: int | None = None,
) -> Head:
    """A smaller head of the teacher's task, variant and dropout, on its device.

    token_ids     the teacher's ids of the student's tokens (`pruned_tokenizer` gives them)
    num_hiddens   narrower than the teacher, the student's embeddings begin as the principal components of the teacher's
                  and the rest at random; as wide, it begins with the teacher's embeddings, hidden and output layer
    ffn_num_hiddens, num_heads, num_layers   None means four times the width, heads of 32, and four layers; with
                  `layers` those have as many layers as named, with heads of the teacher's size and a feed-forward layer
                  not wider than the teacher's (as wide, where the student is)
    layers        the teacher's layers, from 0, that the student's begin as: as wide as the teacher the same, narrower
                  what comes nearest to them on `sample`
    sample        rows of the teacher's tokens, of which the first 16,384 tokens are used
    max_len       tokens of the longest row; None means the teacher's (`Head.row_len`)

    Raises ValueError for layers that the teacher does not have, and for sizes that do not go with `layers`.
    """
    config, encoder = teacher.config, teacher.encoder
    width = config.num_hiddens
    asked = dict(ffn_num_hiddens=ffn_num_hiddens, num_heads=num_heads, num_layers=num_layers)
    given = {name: number for name, number in asked.items() if number is not None}
    sizes: dict[str, Any] = dict(ffn_num_hiddens=4 * num_hiddens, num_heads=max(1, num_hiddens // 32), num_layers=4)
    if layers is not None:
        if bad := [i for i in layers if not 0 <= i < config.num_layers]:
            raise ValueError(f"the teacher has layers 0 to {config.num_layers - 1}, not {bad[0]}")
        size = width // config.num_heads
        if num_hiddens > width or num_hiddens % size:
            raise ValueError(f"layers of a teacher {width} wide, of heads of {size}, cannot be {num_hiddens} wide")
        if num_hiddens < width and sample is None:
            raise ValueError("layers narrower than the teacher's need a sample")
        wide = config.ffn_num_hiddens if num_hiddens == width else min(4 * num_hiddens, config.ffn_num_hiddens)
        sizes = dict(ffn_num_hiddens=wide, num_heads=num_hiddens // size, num_layers=len(layers))
        for name, number in given.items():
            cut = name == "ffn_num_hiddens" and num_hiddens < width
            if number > config.ffn_num_hiddens if cut else number != sizes[name]:
                most = f"at most {config.ffn_num_hiddens}" if cut else sizes[name]
                raise ValueError(f"{name}={number} does not go with layers={list(layers)}, which ask for {most}")
    small: BERTConfig = replace(
        config,
        vocab_size=len(token_ids),
        num_hiddens=num_hiddens,
        **(sizes | given),
        max_len=teacher.row_len(max_len),
        pretraining_heads=False,
    )
    student = HEADS[teacher.task](BERTModel(small), teacher.output.out_features, teacher.label_names, teacher.dropout.p)
    student.to(encoder.pos_embedding.device)
    student.settings.update(teacher.settings)
    own: BERTEncoder = student.encoder
    if layers is not None and num_hiddens < width:
        assert sample is not None
        _begin_near(student, teacher, token_ids, layers, sample)
        return student
    with torch.no_grad():
        tables = [encoder.token_embedding.weight[token_ids], encoder.segment_embedding.weight]
        tables.append(encoder.pos_embedding[0, : small.max_len])
        if num_hiddens == width:
            own.load_state_dict({k: v for k, v in encoder.state_dict().items() if "_norm" in k}, strict=False)
            student.output.load_state_dict(teacher.output.state_dict())
            if student.pooled:
                student.hidden.load_state_dict(teacher.hidden.state_dict())
        elif num_hiddens < width:
            centre = tables[0].mean(0)
            spread = tables[0] - centre
            directions = torch.linalg.eigh(spread.T @ spread).eigenvectors.flip(1)[:, :num_hiddens]
            tables = [table @ directions for table in (spread, *tables[1:])]
            factor = spread.std() / tables[0].std()
            tables = [table * factor for table in tables]
        if num_hiddens <= width:
            _set_tables(own, tables)
        for block, i in zip(own.blks, layers or (), strict=False):
            block.load_state_dict(encoder.blks[i].state_dict())
    return student


def _set_tables(encoder: BERTEncoder, tables: Sequence[Tensor]) -> None:
    """Token, segment and position embeddings."""
    encoder.token_embedding.weight.copy_(tables[0])
    encoder.segment_embedding.weight.copy_(tables[1])
    encoder.pos_embedding[0].copy_(tables[2])


@torch.no_grad()
def _begin_near(student: Head, teacher: Head, token_ids: Tensor, layers: Sequence[int], sample: EncodedTexts) -> None:
    """Embeddings and layers that give, on the sample, nearly what the teacher's do, of fewer numbers a token.

    The student's vectors stand for the teacher's in their principal directions. Of a layer's heads and of its hidden
    units those of the largest effect are kept. Layer by layer, each matrix is then the one that from what the student
    has comes nearest to what the teacher has, by least squares, and so makes good for what is lost before it.
    """
    theirs, own = teacher.encoder, student.encoder
    batch = sample.batch(range(max(1, int((sample.offsets <= 1 << 14).sum()) - 1))).to(theirs.pos_embedding.device)
    with eval_mode(teacher):
        with _watched(teacher, range(teacher.config.num_layers)) as found:
            theirs(batch)
        states = [theirs.embed(batch), *found]  # before the first layer and after each, (T, H)
        n = student.config.num_hiddens
        directions = torch.linalg.eigh(sum(x.T @ x / len(x) for x in states)).eigenvectors.flip(1)[:, : n - 1]
        # LayerNorm takes away the mean of a vector's numbers: turned, so that this mean is always 0.
        basis = directions @ torch.linalg.svd(directions.new_ones(n, 1))[0][:, 1:].T  # (H, n)

        ids = batch.input_ids.long(), batch.segment_ids.long(), batch.positions.long()
        tables = [table @ basis for table in (
            theirs.token_embedding.weight, theirs.segment_embedding.weight, theirs.pos_embedding[0]
        )]  # fmt: skip
        x = sum(table[i] for table, i in zip(tables, ids, strict=True))
        _set_tables(own, [tables[0][token_ids], tables[1], tables[2][: student.config.max_len]])
        if student.config.embedding_norm:
            x = _fitted_norm(own.embedding_norm, x, states[0] @ basis)
        for block, i in zip(own.blks, layers, strict=True):
            pair = cast(EncoderBlock, block), cast(EncoderBlock, theirs.blks[i])
            x = _fitted_block(*pair, x, states[i], states[i + 1], basis, batch)


def _fitted_block(
    own: EncoderBlock, theirs: EncoderBlock, x: Tensor, y: Tensor, result: Tensor, basis: Tensor, batch: PackedBatch
) -> Tensor:
    """What the student's block gives for x [T, n] once it is set; the teacher's gives `result` [T, H] for y [T, H]."""
    a, b = theirs.attention, own.attention
    size = y.shape[1] // a.num_heads

    def attend(qkv: Sequence[Tensor]) -> Tensor:
        heads = torch.stack([t.view(len(t), -1, size) for t in qkv], 1)  # (T, 3, h, d)
        return ops.varlen_attention_packed(heads, batch.cu_seqlens, batch.max_seqlen).flatten(1)

    qkv = [F.linear(y, layer.weight, layer.bias) for layer in (a.W_q, a.W_k, a.W_v)]
    context = attend(qkv)
    parts = [F.linear(context[:, h : h + size], a.W_o.weight[:, h : h + size]) for h in range(0, y.shape[1], size)]
    kept = torch.stack([part.var(0).sum() for part in parts]).topk(b.num_heads).indices
    columns = (kept[:, None] * size + torch.arange(size, device=kept.device)).flatten()
    fitted = [_fitted(layer, x, t[:, columns]) for layer, t in zip((b.W_q, b.W_k, b.W_v), qkv, strict=True)]
    x = x + _fitted(b.W_o, attend(fitted), F.linear(context, a.W_o.weight, a.W_o.bias) @ basis)
    y = theirs.addnorm1(y, F.linear(context, a.W_o.weight), a.W_o.bias)
    x = _fitted_norm(own.addnorm1.ln, x, y @ basis)

    big, small = theirs.ffn, own.ffn
    before = F.linear(y, big.dense1.weight, big.dense1.bias)
    zeros = torch.zeros_like(big.dense1.bias)
    hidden = ops.bias_act(before, zeros, big.activation)
    effect = hidden.std(0) * big.dense2.weight.norm(dim=0)
    units = effect.topk(small.dense1.out_features).indices
    before = _fitted(small.dense1, x, before[:, units])
    found = ops.bias_act(before, zeros[units], big.activation)
    x = x + _fitted(small.dense2, found, F.linear(hidden, big.dense2.weight, big.dense2.bias) @ basis)
    return _fitted_norm(own.addnorm2.ln, x, result @ basis)


def _fitted(layer: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    """The layer's outputs for x, once it is set to come nearest to y."""
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    gram = (x.T @ x).double()
    gram.diagonal().add_(1e-4 * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, (x.T @ y).double()).to(x.dtype)
    layer.weight.copy_(weight[:-1].T)
    layer.bias.copy_(weight[-1])
    return cast(Tensor, x @ weight)


def _fitted_norm(norm: nn.LayerNorm, x: Tensor, y: Tensor) -> Tensor:
    """The LayerNorm of x, once its scale and shift come nearest to y."""
    x = F.layer_norm(x, x.shape[1:], eps=norm.eps)
    spread = x - x.mean(0)
    norm.weight.copy_((spread * y).sum(0) / spread.square().sum(0))
    norm.bias.copy_(y.mean(0) - norm.weight * x.mean(0))
    return x * norm.weight + norm.bias


def distill(
    teacher: Head,
    teacher_tokenizer: Tokenizer,
    student: Head,
    tokenizer: Tokenizer,
    train: Any,
    dev: Any = None,
    *,
    unlabelled: Any = None,
    max_len: int | None = None,
    truncation: Truncation = "longest_first",
    temperature: float = 2.0,
    hard: float = 0.5,
    soft: float = 0.5,
    hidden: float = 0.1,
    hidden_layers: Sequence[int] = (),
    precision: str = "fp32",
    **options: Any,
) -> History:
    """Train `student` in place, on the labels and on what the teacher makes of the same examples.

    The loss is the mean over the head's units of `hard` times the task's own, where there is a label; `soft` times the
    divergence from the teacher's probabilities at `temperature`, times its square (where the outputs are numbers, the
    squared difference); and `hidden` times the mean squared difference between the vectors that the heads read, the
    student's projected to the teacher's width by a layer of its own. The teacher runs once over all examples, in eval
    mode; kept is, for each row that its head reads, the outputs and with `hidden` the vectors.

    train, dev      what the task's reader gives
    unlabelled      further examples, of which only the teacher says something
    max_len         tokens a row; None means the head's own
    hidden_layers   layers of the teacher, from 0, that the student's first layers are to be like, in order, where the
                    head reads; the last is always to be like the last
    options         for `fit`. On a GPU steps are CUDA graphs where the head reads one row a sequence and what the
                    teacher says of all examples takes no more than 2 GiB (while it says it, twice that); else each step
                    fetches its part from the CPU

    Raises ValueError for heads of different tasks or classes, or with a `forward` of their own, for layers that are not
    there or do not learn, for `cuda_graphs` where steps cannot be, and where the student's head would read other rows
    than the teacher's: that of question answering reads all tokens, which must be the same.
    """
    if (student.task, student.label_names) != (teacher.task, teacher.label_names):
        raise ValueError("teacher and student must be heads of the same task and classes")
    for name, model in (("teacher", teacher), ("student", student)):
        if type(model).forward is not Head.forward:
            raise ValueError(f"the {name} has a `forward` of its own, where distill calls `features` and `head`")
    if hidden_layers and not len(hidden_layers) < student.config.num_layers:
        raise ValueError(f"the student has {student.config.num_layers - 1} layers before its last for hidden_layers")
    if bad := [i for i in hidden_layers if not 0 <= i < teacher.config.num_layers - 1]:
        raise ValueError(f"hidden_layers are 0 to {teacher.config.num_layers - 2} of the teacher, not {bad[0]}")
    if hidden_layers and not hidden:
        raise ValueError("hidden_layers need `hidden` above 0")
    if hidden_layers and options.get("freeze") in ("encoder", student.config.num_layers):
        raise ValueError(f"hidden_layers are for layers that learn, and freeze={options['freeze']!r} freezes all")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0; found {temperature}")
    max_len = min(teacher.row_len(max_len), student.config.max_len)
    examples = [data for data in (train, unlabelled) if data is not None]
    theirs = _joined(
        [encoded_texts(teacher.encode(teacher_tokenizer, data, max_len, truncation), "") for data in examples]
    )
    parts = [encoded_texts(student.encode(tokenizer, data, max_len, truncation), "") for data in examples]
    mine = _joined(parts)
    held = None if dev is None else student.encode(tokenizer, dev, max_len, truncation)
    for name, data in (("train", parts[0]), ("dev", held)):
        if data is not None:
            check_labels(encoded_texts(data, name), name, student)
    counts, their_counts = tokens_per_sequence(student, mine), tokens_per_sequence(teacher, theirs)
    # Sentences of words may be cut into rows elsewhere; the words are the same.
    if (counts.sum() != their_counts.sum()) if mine.labels is not None else not torch.equal(counts, their_counts):
        raise ValueError("the student's tokens are not the teacher's: prune no token of the texts (min_freq=1)")

    graphs = options.pop("cuda_graphs", None)
    if graphs is None and not ours(student):
        graphs = False
    width = teacher.output.out_features + bool(hidden) * teacher.config.num_hiddens * (1 + len(hidden_layers))
    ignores = student.ignored is not None and (ours(student) or graphs is True)
    by_sequence = student.pooled and ignores and len(mine) * width * 4 <= _MOST_ON_A_GPU
    if graphs and not by_sequence:
        raise ValueError(
            "cuda_graphs needs a head that reads one row a sequence and whose loss ignores a label, and no more than "
            f"{_MOST_ON_A_GPU >> 30} GiB of what the teacher says of all examples"
        )

    def known(batch: PackedBatch) -> Tensor:
        vectors = _vectors(teacher, batch, found)
        outputs = teacher.head(vectors[:, : teacher.config.num_hiddens])
        kept = torch.cat([outputs, vectors] if hidden else [outputs], 1).float()
        return kept if by_sequence else kept.cpu()

    capturable = by_sequence and not hidden_layers  # hooks are none of a graph's
    with _watched(teacher, hidden_layers) as found:
        asked = False if graphs is False else None  # of the student's steps; the teacher may lie elsewhere
        targets = in_batches(teacher, known, theirs, precision=precision, by_sequence=capturable, cuda_graphs=asked)
    pupil = _Pupil(
        student, mine, parts[0], targets, counts, by_sequence, temperature, hard, soft, hidden, len(hidden_layers)
    )
    keys = torch.arange(len(mine))[:, None]
    keyed = EncodedTexts(mine.ids, mine.offsets, mine.first_lens, keys, pad_id=mine.pad_id, max_len=mine.max_len)
    assert parts[0].labels is not None
    pupil.settings = dict(  # what a continued run must have in common beside what `fit` sees
        temperature=temperature, hard=hard, soft=soft, hidden=hidden, hidden_layers=list(hidden_layers),
        taught=fingerprint([*teacher.parameters(), parts[0].labels]),
    )  # fmt: skip
    history = fit(pupil, keyed, held, precision=precision, cuda_graphs=graphs, **options)
    student.eval()
    return history


def _joined(parts: Sequence[EncodedTexts]) -> EncodedTexts:
    """The rows of all parts; labels only where they are the tokens', and say which are read."""
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat([part.lengths for part in parts]).cumsum(0)])
    by_token = [part.labels for part in parts if part.labels is not None and part.labels.shape == part.ids.shape]
    return EncodedTexts(
        torch.cat([part.ids for part in parts]),
        offsets,
        torch.cat([part.first_lens for part in parts]),
        torch.cat(by_token) if len(by_token) == len(parts) else None,
        pad_id=parts[0].pad_id,
        max_len=parts[0].max_len,
    )


@contextmanager
def _watched(model: Head, layers: Iterable[int]) -> Iterator[list[Tensor]]:
    """A list that takes up the outputs of these layers as they run."""
    found: list[Tensor] = []
    hooks = [model.encoder.blks[i].register_forward_hook(lambda *call: found.append(call[-1])) for i in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _vectors(model: Head, batch: PackedBatch, found: list[Tensor]) -> Tensor:
    """[R, H (1 + layers)]: of each row that is read the encoder's vector, then those of the layers watched."""
    found.clear()
    last, rows = model.features(batch), model.token_index(batch)
    inner = [x[: len(batch.input_ids)] if rows is None else x[rows] for x in found]
    return torch.cat([last, *(x.to(last.dtype) for x in inner)], 1)


_MOST_ON_A_GPU = 2 << 30  # bytes of what the teacher said; more stays on the CPU


class _Pupil(Head):
    """The student among what it is to learn from; the labels of its training data, int64 [N, 1], are their own numbers.

    pairs        all of that data; labels only where they say which tokens are read
    labelled     its beginning, with its own labels
    targets      float32 [R, C + H' (1 + layers)], of each row read the teacher's outputs and then its vectors
    counts       int64 [N], the rows read of each example
    by_sequence  one row is read of each sequence, and what is known of them comes to lie where the student is: so a
                 step waits for nothing, and can be a CUDA graph, whose padding has -1 for a number
    """

    def __init__(
        self,
        student: Head,
        pairs: EncodedTexts,
        labelled: EncodedTexts,
        targets: Tensor,
        counts: Tensor,
        by_sequence: bool,
        temperature: float,
        hard: float,
        soft: float,
        hidden: float,
        layers: int,
    ) -> None:
        nn.Module.__init__(self)
        self.student = student
        assert labelled.labels is not None
        self.pairs, self.labelled = pairs, labelled
        self.targets, self.counts, self.begins = targets, counts, counts.cumsum(0) - counts
        self.labels = labelled.labels
        self.by_sequence = by_sequence
        self.ignored = -1 if by_sequence else None  # type: ignore[misc]
        self.weights = (hard, soft, hidden)
        self.temperature = temperature
        self.layers = range(layers)
        width = (targets.shape[1] - student.output.out_features) // (1 + layers)
        own, dtype = student.config.num_hiddens, student.output.weight.dtype
        self.project = nn.ModuleList(nn.Linear(own, width, dtype=dtype) for _ in range(1 + layers) if hidden)
        self.metric = student.metric

    @property
    def encoder(self) -> BERTEncoder:  # type: ignore[override]
        return self.student.encoder

    @property
    def dropout(self) -> nn.Dropout:  # type: ignore[override]
        return self.student.dropout

    def _own(self, batch: PackedBatch) -> PackedBatch:
        """A batch of numbered examples as the student's head knows it, but for labels that only the loss needs; others
        as they are."""
        if not _numbered(batch.labels):
            return batch
        if self.by_sequence:
            return replace(batch, labels=None)
        return self.pairs.batch(_numbers(batch).cpu()).to(batch.device)

    def token_index(self, batch: PackedBatch) -> Tensor | None:
        return self.student.token_index(self._own(batch))

    def features(self, batch: PackedBatch) -> Tensor:
        with _watched(self.student, self.layers if self.training else ()) as found:
            return _vectors(self.student, self._own(batch), found)

    def head(self, features: Tensor) -> Tensor:
        last, *inner = torch.split(features, self.student.config.num_hiddens, 1)
        outputs = self.student.head(last)
        if not self.training:
            return outputs
        projected = [layer(x) for layer, x in zip(self.project, (last, *inner), strict=False)]
        return torch.cat([outputs, *projected], 1)

    def loss(self, outputs: Tensor, batch: PackedBatch) -> Tensor:
        if not _numbered(batch.labels):
            return self.student.loss(outputs, batch)
        own, width = self._own(batch), self.student.output.out_features
        outputs, targets = self._read(outputs, batch)
        scores, vectors = outputs[:, :width], outputs[:, width:]
        hard, soft, hidden = self.weights
        mine, theirs = (self.student.logits(x, own) for x in (scores, targets[:, :width]))
        if mine is None or theirs is None:
            apart = (scores - targets[:, :width]).square()
        else:
            # Padding has minus infinity on both sides, of which a difference is none.
            p, q = ((x.clamp(min=-1e30) / self.temperature).log_softmax(-1) for x in (theirs, mine))
            apart = self.temperature**2 * F.kl_div(q, p, reduction="none", log_target=True).sum(-1, keepdim=True)
        parts = [(soft, apart)]
        if len(self.project):
            parts.append((hidden, (vectors - targets[:, width:]).square()))
        if self.by_sequence:
            padding = (_numbers(batch) < 0)[:, None]
            parts = [(weight, x.masked_fill(padding, 0)) for weight, x in parts]
        means = [weight * x.sum() / max(1, x.numel()) for weight, x in parts]  # sentences may be without words
        return self.student.num_targets(own) * torch.stack(means).sum() + hard * self._hard(scores, batch)

    def _read(self, outputs: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """The outputs of the rows that the student's head reads, and their targets."""
        if self.by_sequence:
            if not self.targets.device == self.labels.device == batch.device:  # at the first step
                self.targets, self.labels = self.targets.to(batch.device), self.labels.to(batch.device)
            return outputs, self.targets[_numbers(batch).clamp(min=0)].to(outputs)
        numbers = _numbers(batch).cpu()
        targets = self.targets[ragged_index(self.begins[numbers], self.counts[numbers])].to(outputs)
        if len(outputs) > len(targets):  # a tagger's of all tokens, as in training on a GPU
            rows = self.student.token_index(self.pairs.batch(numbers))
            assert rows is not None
            outputs = outputs[rows.to(outputs.device)]
        return outputs, targets

    def _hard(self, scores: Tensor, batch: PackedBatch) -> Tensor | float:
        """The task's own loss where there are labels."""
        numbers, count = _numbers(batch), len(self.labelled)
        if self.by_sequence:
            assert self.student.ignored is not None
            labels = self.labels[numbers.clamp(0, count - 1)]
            foreign = ((numbers < 0) | (numbers >= count)).view(-1, *[1] * (labels.dim() - 1))
            labelled = replace(batch, labels=labels.masked_fill(foreign, self.student.ignored))
            return self.student.loss(scores, labelled)
        numbers = numbers.cpu()
        known = numbers < count
        if not bool(known.any()):
            return 0.0
        labelled = self.labelled.batch(numbers[known]).to(scores.device)
        return self.student.loss(scores[known.repeat_interleave(self.counts[numbers]).to(scores.device)], labelled)

    def num_targets(self, batch: PackedBatch) -> int:
        return self.student.num_targets(self._own(batch))

    def label_error(self, labels: Tensor) -> str | None:
        return None if _numbered(labels) else self.student.label_error(labels)

    def metrics(self, outputs: Tensor, data: Any) -> dict[str, Any]:
        return self.student.metrics(outputs, data)


def _numbered(labels: Tensor | None) -> bool:
    return labels is not None and labels.dtype == torch.int64 and labels.shape[1:] == (1,)


def _numbers(batch: PackedBatch) -> Tensor:
    assert batch.labels is not None
    return batch.labels[:, 0]

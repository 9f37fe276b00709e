"""Students: a tokenizer with fewer tokens, and a smaller model that begins near its teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertnli import ops
from bertnli.distillation.objective import watched_layers
from bertnli.encoder.bert import BERTEncoder, BERTModel, added_parameter
from bertnli.encoder.config import BERTConfig
from bertnli.encoder.layers import EncoderBlock
from bertnli.runtime.eval_mode import eval_mode
from bertnli.tasks.base import HEADS, Head
from bertnli.text.batch import PackedBatch
from bertnli.text.encoded import EncodedTexts
from bertnli.text.tokenizer import Tokenizer, WordTokenizer
from bertnli.text.vocab import Vocab
from bertnli.text.wordpiece import WordPieceTokenizer

_SAMPLE_TOKENS = 1 << 14


def pruned_tokenizer(tokenizer: Tokenizer, texts: Iterable[str], min_freq: int = 1) -> tuple[Tokenizer, Tensor]:
    """The tokenizer with only the tokens that occur in `texts` at least `min_freq` times, and their ids in the old one.

    Special tokens stay, and so do WordPiece's single characters, of which rarer words are then made. A text whose
    tokens all stay is tokenized as before.
    """
    counts: Counter[int] = Counter(tokenizer.encode_texts_with_offsets(list(texts)).ids.tolist())
    frequent = {token for token, count in counts.items() if count >= min_freq}
    if isinstance(tokenizer, WordPieceTokenizer):
        always = {i for i, token in enumerate(tokenizer.tokens) if len(token.removeprefix("##")) == 1}
        always |= {tokenizer.token_to_id(token) for token in WordPieceTokenizer.SPECIAL}
        ids = sorted(frequent | always)
        tokens = [tokenizer.tokens[i] for i in ids]
        pruned: Tokenizer = WordPieceTokenizer(tokens, tokenizer.lowercase, tokenizer.split_special_tokens)
        return pruned, torch.tensor(ids)
    always = {tokenizer.token_to_id(token) for token in ("<unk>", "<pad>", "<mask>", "<cls>", "<sep>")}
    ids = sorted(frequent | always)
    return WordTokenizer(Vocab.of([tokenizer.id_to_token(i) for i in ids])), torch.tensor(ids)


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

    token_ids        the teacher's ids of the student's tokens (`pruned_tokenizer` gives them)
    num_hiddens      width. If it is the teacher's, the student begins with the teacher's embeddings, hidden and output
                     layer; if it is narrower, its embeddings begin as the principal components of the teacher's
    ffn_num_hiddens  feed-forward width (default: 4 x num_hiddens; with `layers` at most the teacher's, and the
                     teacher's if num_hiddens is)
    num_heads        attention heads (default: one for 32 of num_hiddens; with `layers` of the teacher's size)
    num_layers       encoder layers (default: 4, or as many as `layers`)
    layers           layers of the teacher, from 0, that the student's begin as: the same if num_hiddens is the
                     teacher's, else those that come nearest to them on `sample`
    sample           sequences of the teacher's tokens; the first 16,384 tokens are used
    max_len          most tokens per sequence (default: the teacher's)

    Raises ValueError for a teacher with an `embedding_size`, with adapters or without an output layer, for layers that
    the teacher does not have, and for sizes that do not go with `layers`.
    """
    if not isinstance(teacher.output, nn.Linear):
        raise ValueError(f"the teacher, a {type(teacher).__name__}, has no output layer to learn from")
    if (added := added_parameter(teacher.encoder)) is not None:
        raise ValueError(
            f"the teacher's encoder has {added}, and a student would begin without it. Merge PEFT's adapters first: "
            "merge_and_unload()"
        )
    if teacher.config.embedding_size is not None:
        raise ValueError("distilling a teacher whose embeddings are projected (embedding_size) is not supported")
    asked = dict(ffn_num_hiddens=ffn_num_hiddens, num_heads=num_heads, num_layers=num_layers)
    given = {name: number for name, number in asked.items() if number is not None}
    sizes: dict[str, Any] = dict(ffn_num_hiddens=4 * num_hiddens, num_heads=max(1, num_hiddens // 32), num_layers=4)
    if layers is not None:
        sizes = _sizes_of_layers(teacher.config, num_hiddens, layers, given, sample)
    config: BERTConfig = replace(
        teacher.config,
        vocab_size=len(token_ids),
        num_hiddens=num_hiddens,
        **(sizes | given),
        max_len=teacher.sequence_len(max_len),
        pretraining_heads=False,
    )
    bert = BERTModel(config)
    student = HEADS[teacher.task](bert, teacher.output.out_features, teacher.label_names, teacher.dropout.p)
    student.to(teacher.encoder.pos_embedding.device)
    student.settings.update(teacher.settings)
    if layers is not None and num_hiddens < teacher.config.num_hiddens:
        assert sample is not None
        _begin_near(student, teacher, token_ids, layers, sample)
    else:
        _begin_as(student, teacher, token_ids, layers or ())
    return student


def _sizes_of_layers(
    config: BERTConfig, num_hiddens: int, layers: Sequence[int], given: dict[str, int], sample: EncodedTexts | None
) -> dict[str, int]:
    """Sizes of a student that begins with these layers of a teacher. ValueError if what is `given` does not fit."""
    width, size = config.num_hiddens, config.num_hiddens // config.num_heads
    if bad := [i for i in layers if not 0 <= i < config.num_layers]:
        raise ValueError(f"the teacher has layers 0 to {config.num_layers - 1}, not {bad[0]}")
    if num_hiddens > width or num_hiddens % size:
        raise ValueError(f"layers of a teacher {width} wide, of heads of {size}, cannot be {num_hiddens} wide")
    narrow = num_hiddens < width
    if narrow and sample is None:
        raise ValueError("layers narrower than the teacher's need a sample")
    inner = min(4 * num_hiddens, config.ffn_num_hiddens) if narrow else config.ffn_num_hiddens
    sizes = dict(ffn_num_hiddens=inner, num_heads=num_hiddens // size, num_layers=len(layers))
    for name, number in given.items():
        free = name == "ffn_num_hiddens" and narrow
        if number > config.ffn_num_hiddens if free else number != sizes[name]:
            most = f"at most {config.ffn_num_hiddens}" if free else sizes[name]
            raise ValueError(f"{name}={number} does not go with layers={list(layers)}, which ask for {most}")
    return sizes


@torch.no_grad()
def _begin_as(student: Head, teacher: Head, token_ids: Tensor, layers: Sequence[int]) -> None:
    """Copy what is as wide as the teacher's; narrower embeddings become the principal components of the teacher's."""
    encoder, own, width = teacher.encoder, student.encoder, student.config.num_hiddens
    tables = [encoder.token_embedding.weight[token_ids], encoder.segment_embedding.weight]
    tables.append(encoder.pos_embedding[0, : student.config.max_len])
    if width == teacher.config.num_hiddens:
        own.load_state_dict({k: v for k, v in encoder.state_dict().items() if "_norm" in k}, strict=False)
        student.output.load_state_dict(teacher.output.state_dict())
        if student.pooled:
            student.hidden.load_state_dict(teacher.hidden.state_dict())
    elif width < teacher.config.num_hiddens:
        spread = tables[0] - tables[0].mean(0)
        directions = _principal_directions(spread.T @ spread, width)
        tables = [table @ directions for table in (spread, *tables[1:])]
        factor = spread.std() / tables[0].std()
        tables = [table * factor for table in tables]
    if width <= teacher.config.num_hiddens:
        _set_tables(own, tables)
    for block, i in zip(own.blks, layers, strict=False):
        block.load_state_dict(encoder.blks[i].state_dict())


def _principal_directions(moments: Tensor, count: int) -> Tensor:
    """The eigenvectors of the largest eigenvalues of a symmetric [H, H], the largest first: [H, count]."""
    vectors: Tensor = torch.linalg.eigh(moments).eigenvectors
    return vectors.flip(1)[:, :count]


def _set_tables(encoder: BERTEncoder, tables: Sequence[Tensor]) -> None:
    """Set the token, segment and position embeddings."""
    encoder.token_embedding.weight.copy_(tables[0])
    encoder.segment_embedding.weight.copy_(tables[1])
    encoder.pos_embedding[0].copy_(tables[2])


# ---- layers narrower than the teacher's, by least squares on a sample -----------------------------------------------


@torch.no_grad()
def _begin_near(student: Head, teacher: Head, token_ids: Tensor, layers: Sequence[int], sample: EncodedTexts) -> None:
    """Set embeddings and layers so that their outputs on the sample come near to the teacher's.

    The student's vectors are the teacher's in their principal directions. Of a layer's heads and hidden units those
    with the largest effect stay. Layer by layer, each matrix then maps the student's inputs as near as possible to the
    teacher's outputs, by least squares, and so corrects errors of the layers before it.
    """
    encoder, own = teacher.encoder, student.encoder
    count = max(1, int((sample.offsets <= _SAMPLE_TOKENS).sum()) - 1)
    batch = sample.batch(range(count)).to(encoder.pos_embedding.device)
    with eval_mode(teacher):
        with watched_layers(teacher, range(teacher.config.num_layers)) as layer_outputs:
            encoder(batch)
        states = [encoder.embed(batch), *layer_outputs]  # before the first layer and after each, (T, H)
        n = student.config.num_hiddens
        directions = _principal_directions(cast(Tensor, sum(x.T @ x / len(x) for x in states)), n - 1)
        # LayerNorm subtracts the mean over a vector's elements; in this basis that mean is always 0.
        basis = directions @ torch.linalg.svd(directions.new_ones(n, 1))[0][:, 1:].T  # (H, n)

        ids = batch.input_ids.long(), batch.segment_ids.long(), batch.positions.long()
        wide = encoder.token_embedding.weight, encoder.segment_embedding.weight, encoder.pos_embedding[0]
        tables = [table @ basis for table in wide]
        x = sum(table[i] for table, i in zip(tables, ids, strict=True))
        _set_tables(own, [tables[0][token_ids], tables[1], tables[2][: student.config.max_len]])
        if student.config.embedding_norm:
            x = _fit_norm(own.embedding_norm, x, states[0] @ basis)
        for block, i in zip(own.blks, layers, strict=True):
            pair = cast(EncoderBlock, block), cast(EncoderBlock, encoder.blks[i])
            x = _fit_block(*pair, x, states[i], states[i + 1], basis, batch)


def _fit_block(
    own: EncoderBlock, wide: EncoderBlock, x: Tensor, y: Tensor, result: Tensor, basis: Tensor, batch: PackedBatch
) -> Tensor:
    """Set the student's block `own`, and give its outputs for x [T, n]; `wide` gives `result` [T, H] for y [T, H]."""
    a, b = wide.attention, own.attention
    size = y.shape[1] // a.num_heads

    def attend(qkv: Sequence[Tensor]) -> Tensor:
        heads = torch.stack([t.view(len(t), -1, size) for t in qkv], 1)  # (T, 3, h, d)
        return ops.varlen_attention_packed(heads, batch.cu_seqlens, batch.max_seqlen).flatten(1)

    qkv = [F.linear(y, layer.weight, layer.bias) for layer in (a.W_q, a.W_k, a.W_v)]
    context = attend(qkv)
    parts = [F.linear(context[:, h : h + size], a.W_o.weight[:, h : h + size]) for h in range(0, y.shape[1], size)]
    heads = torch.stack([part.var(0).sum() for part in parts]).topk(b.num_heads).indices
    columns = (heads[:, None] * size + torch.arange(size, device=heads.device)).flatten()
    fitted = [_fit_linear(layer, x, t[:, columns]) for layer, t in zip((b.W_q, b.W_k, b.W_v), qkv, strict=True)]
    x = x + _fit_linear(b.W_o, attend(fitted), F.linear(context, a.W_o.weight, a.W_o.bias) @ basis)
    y = wide.addnorm1(y, F.linear(context, a.W_o.weight), a.W_o.bias)
    x = _fit_norm(own.addnorm1.ln, x, y @ basis)

    big, small = wide.ffn, own.ffn
    before = F.linear(y, big.dense1.weight, big.dense1.bias)
    zeros = torch.zeros_like(big.dense1.bias)
    hidden = ops.bias_act(before, zeros, big.activation)
    effect = hidden.std(0) * big.dense2.weight.norm(dim=0)
    units = effect.topk(small.dense1.out_features).indices
    before = _fit_linear(small.dense1, x, before[:, units])
    after = ops.bias_act(before, zeros[units], big.activation)
    x = x + _fit_linear(small.dense2, after, F.linear(hidden, big.dense2.weight, big.dense2.bias) @ basis)
    return _fit_norm(own.addnorm2.ln, x, result @ basis)


def _fit_linear(layer: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    """Set the layer so that its outputs for x come nearest to y, and give them."""
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    gram = (x.T @ x).double()
    gram.diagonal().add_(1e-4 * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, (x.T @ y).double()).to(x.dtype)
    layer.weight.copy_(weight[:-1].T)
    layer.bias.copy_(weight[-1])
    return cast(Tensor, x @ weight)


def _fit_norm(norm: nn.LayerNorm, x: Tensor, y: Tensor) -> Tensor:
    """Set the LayerNorm's scale and shift so that its outputs for x come nearest to y, and give them."""
    x = F.layer_norm(x, x.shape[1:], eps=norm.eps)
    spread = x - x.mean(0)
    norm.weight.copy_((spread * y).sum(0) / spread.square().sum(0))
    norm.bias.copy_(y.mean(0) - norm.weight * x.mean(0))
    return x * norm.weight + norm.bias

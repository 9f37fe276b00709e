"""Embedding sums: `bertnli::embed`, and `bertnli::embed_norm` with LayerNorm and dropout."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bertnli.ops.devices import check_no_seed, computed_dtype, has_kernel, seed_or_drawn

_lib = torch.ops.bertnli


def embed(
    token_table: Tensor,
    segment_table: Tensor,
    position_table: Tensor,
    input_ids: Tensor,
    segment_ids: Tensor,
    positions: Tensor,
    *,
    sparse: bool = False,
) -> Tensor:
    """Row input_ids[t] of the token table + row segment_ids[t] of the segments' + row positions[t] of the positions'.

    token_table     [V, H]   float32, bfloat16 or float64
    segment_table   [S, H]   the same dtype
    position_table  [P, H]   the same dtype
    input_ids, segment_ids, positions   int32 [T]
    sparse          on the CPU, the token table's gradient is sparse, with one row for each distinct id

    Returns [T, H]. The tables' gradients are dense but for `sparse`.

    Raises IndexError for an id or a position outside its table (on CUDA, where that would wait for the device, the row
    is NaN), RuntimeError that names the argument where a shape or dtype does not fit.
    """
    if not has_kernel(token_table):
        return (
            F.embedding(input_ids, token_table)
            + F.embedding(segment_ids, segment_table)
            + F.embedding(positions, position_table)
        )
    tables = token_table, segment_table, position_table
    return cast(Tensor, _lib.embed(*tables, input_ids, segment_ids, positions, sparse))


def _fake_embed(token_table: Tensor, segment_table: Tensor, position_table: Tensor, ids: Tensor, *_: Any) -> Tensor:
    return token_table.new_empty((ids.size(0), token_table.size(1)))


torch.library.register_fake("bertnli::embed", _fake_embed)


def _fake_embed_backward(
    dout: Tensor, ids: Tensor, segment_ids: Tensor, positions: Tensor, *rows_and_wanted: int
) -> tuple[Tensor, ...]:
    rows, wanted = rows_and_wanted[:3], rows_and_wanted[3:]
    return tuple(dout.new_empty((n if want else 0, dout.size(1))) for n, want in zip(rows, wanted, strict=True))


torch.library.register_fake("bertnli::embed_backward", _fake_embed_backward)


def take(table: Tensor, ids: Tensor, *, sparse: bool = False) -> Tensor:
    """table[ids] [n, H] of a table [V, H] and int32 ids [n]; the gradient is `embed`'s, and so is what is raised."""
    nothing, zeros = table.new_zeros(1, table.size(1)), torch.zeros_like(ids)
    return embed(table, nothing, nothing, ids, zeros, zeros, sparse=sparse)


def embed_norm(
    token_table: Tensor,
    segment_table: Tensor,
    position_table: Tensor,
    input_ids: Tensor,
    segment_ids: Tensor,
    positions: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    *,
    dtype: torch.dtype | None = None,
    sparse: bool = False,
    seed: Tensor | None = None,
) -> Tensor:
    """dropout(LayerNorm(`embed(...)`)), [T, H], one pass forward and two backward.

    weight, bias   [H]   LayerNorm's, any floating-point dtype
    dtype          of the result: the tables' (by default), or bfloat16 where that is float32

    The other arguments are those of `embed`, and `dropout_p` and `seed` those of `add_norm`, whose masks it uses.
    Differentiable, once, in the tables, weight and bias. Raises as these do.
    """
    dtype = token_table.dtype if dtype is None else dtype
    tables, ids = (token_table, segment_table, position_table), (input_ids, segment_ids, positions)
    if not has_kernel(token_table):
        check_no_seed("embed_norm", token_table, seed)
        x = F.layer_norm(embed(*tables, *ids), (token_table.size(1),), weight, bias, eps)
        return F.dropout(x, dropout_p).to(dtype)
    seed = seed_or_drawn(token_table, dropout_p, seed)
    return cast(Tensor, _lib.embed_norm(*tables, *ids, weight, bias, eps, dropout_p, seed, dtype, sparse)[0])


def _fake_embed_norm(
    token_table: Tensor, segment_table: Tensor, position_table: Tensor, ids: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    rows, dtype = ids.shape[:1], computed_dtype(token_table)
    out = token_table.new_empty((*rows, token_table.size(1)), dtype=rest[-2])
    return out, out.new_empty(rows, dtype=dtype), out.new_empty(rows, dtype=dtype)


torch.library.register_fake("bertnli::embed_norm", _fake_embed_norm)


def _fake_embed_norm_backward(dout: Tensor, token_table: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias = rest[5:7]
    return (
        dout.new_empty(dout.shape, dtype=computed_dtype(token_table)),
        torch.empty_like(weight),
        torch.empty_like(bias),
    )


torch.library.register_fake("bertnli::embed_norm_backward", _fake_embed_norm_backward)

"""A model made ready for inference: structure checked once, weights prepacked once, one call from batch to outputs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from bertnli import _ops
from bertnli.data.arguments import choice
from bertnli.encoder.bert import BERTEncoder, check_length
from bertnli.encoder.plain import changes_seen
from bertnli.inference.fusing import CannotFuse, Parts, encoder_parts, head_parts, is_overridden
from bertnli.runtime import PRECISIONS
from bertnli.runtime.eval_mode import eval_mode
from bertnli.runtime.precision import autocast, unused_precision, uses_bf16
from bertnli.tasks.base import Head, check_head
from bertnli.text.batch import PackedBatch


class InferenceSession:
    """`session(batch)` gives a model's outputs in eval mode, without gradients.

        session = InferenceSession(model, precision="int8")
        outputs = session(encoded.batch(range(16)))

    model      a head with its encoder
    precision  "fp32"; "bf16": weights and inputs of the encoder's products rounded to bfloat16; "int8": each output's
               weights rounded to 8 bits by the largest of them, each token's inputs by their range, attention in
               bfloat16. Sums, statistics and the head are float32, on the CPU the residual stream too. An x86 CPU
               without instructions for these rounds for "bf16" weights to 12 bits and inputs to 13, which loses no
               more, and for "int8" weights to between 7 and 8 bits; its attention is float32. Other CPUs round only
               the weights for "bf16".

    On the CPU, all layers of an unmodified float32 encoder are one fused operator, and so are those of a head whose
    `head` is Head's own. Otherwise (GPU, other dtypes, replaced layers, hooks, a `forward` or `features` of the head's
    own) the modules themselves run, in bfloat16 for "bf16" as `uses_bf16` says.

    The encoder's weights are prepacked as they are when the session is made. Use it while `is_current()`: after a
    change, old and new weights mix, and a layer that is replaced or hooked is not called. `score`, `evaluate` and
    `predict` make a new session then, and after `model.train()`.

    Raises ValueError for an unknown precision, for "int8" where the modules themselves would run, and for layers whose
    widths do not fit together.
    """

    def __init__(self, model: Head, precision: str = "fp32") -> None:
        choice(precision, "precision", PRECISIONS)
        check_head(model)
        self.precision = precision
        self.device = model.encoder.pos_embedding.device
        self._model: Callable[[], Head | None] = lambda: model
        self._max_len = model.encoder.config.max_len
        self._first = False  # whether the head reads each sequence's first token
        self._encoder: _ops.FusedEncoder | None = None
        self._head: list[Tensor] | None = None  # the parameters of a fused head
        self._parts: list[Parts] = []
        self._seen = changes_seen()
        try:
            encoder = encoder_parts(model)
        except CannotFuse as reason:
            if precision == "int8":
                raise ValueError(
                    "precision='int8' needs an unmodified float32 encoder on the CPU (no replaced layers, no hooks); "
                    f"{reason}"
                ) from None
            self._bf16 = uses_bf16(self.device, precision)
            return
        self._bf16 = False  # of the head
        self._first = model.pooled and not is_overridden(model, "token_index")
        config = model.encoder.config
        sizes = config.num_heads, config.norm_eps, config.activation
        self._encoder = _ops.FusedEncoder(encoder.parameters, *sizes, precision)
        self._parts.append(encoder)
        with suppress(CannotFuse):
            head = head_parts(model)
            self._head = head.parameters
            self._parts.append(head)

    @property
    def model(self) -> Head:
        """The model; a session that `score` keeps on a model does not keep that alive."""
        model = self._model()
        if model is None:
            raise RuntimeError("the session's model has been deleted")
        return model

    @property
    def fused(self) -> bool:
        """True if the outputs are the fused operator's, which needs no `running`."""
        return self._head is not None

    @property
    def encoder_is_fused(self) -> bool:
        """True if the encoder's vectors are the fused operator's."""
        return self._encoder is not None

    @property
    def unused_precision(self) -> str | None:
        """What is computed in place of `precision`, as a sentence; None if the precision is used."""
        return unused_precision(self.device, self.precision, self._encoder is not None)

    def is_current(self) -> bool:
        """True if the session's weights are still the model's, as far as can be told quickly.

        Seen are changes in place, other memory (`parameter.data = ...`) and, by a few sampled values of each parameter,
        writes through `.data`; parameters and layers that were replaced, and hooks. A layer that is changed in place,
        by another `forward` or a parametrization, is not seen. Parameters made in inference mode have no versions:
        their sessions are never current.
        """
        if self._encoder is None:
            return True
        if not self._encoder.is_current():
            return False
        for parts in self._parts:
            if not parts.sources.are_same():
                return False
        return self._seen == changes_seen() or self.is_unmodified()

    def is_unmodified(self) -> bool:
        """True if no layer was replaced, hooked, or changed in place since the session was made. It looks at each."""
        seen = changes_seen()
        unmodified = all(parts.are_in_place(self.model) for parts in self._parts)
        if unmodified:
            self._seen = seen
        return unmodified

    def __call__(self, batch: PackedBatch) -> Tensor:
        """Outputs [R, num_labels] of the tokens that the head reads, float32 from the fused operator.

        Raises ValueError for a sequence longer than `max_len` or, where the head reads `<cls>`, without tokens;
        IndexError for a token id outside the vocabulary.
        """
        if not isinstance(batch, PackedBatch):
            raise TypeError(
                f"expected a PackedBatch, as tokenizer.encode_pairs(...).batch(index) makes one; found {type(batch)}"
            )
        if self.fused:
            return self.outputs_within(batch)
        with self.running():
            return self.outputs_within(self.on_device(batch))

    def features(self, batch: PackedBatch) -> Tensor:
        """The encoder's vectors [R, H] of the tokens that the head reads, after its `pool`. Errors: as of a call."""
        if self._encoder is None:
            with self.running():
                return self.model.features(self.on_device(batch))
        check_length(batch, self._max_len)
        return self.model.pool(self._encoder.features(*self._inputs(batch)), batch)

    @contextmanager
    def running(self) -> Iterator[None]:
        """What modules run in: eval mode, no gradients, the session's precision. Modes are restored after it."""
        with torch.no_grad(), autocast(self.device, self._bf16), eval_mode(self.model, self._encoder is None):
            yield

    def outputs_within(self, batch: PackedBatch) -> Tensor:
        """What a call gives for a batch on the model's device, within `running` unless `fused`."""
        if self._encoder is None:
            return self.model(batch)  # type: ignore[no-any-return]
        if self._head is None:
            return self.model.head(self.features(batch))
        check_length(batch, self._max_len)
        return self._encoder.outputs(*self._inputs(batch), self._head)

    def _inputs(self, batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, bool]:
        index = None if self._first else self.model.token_index(batch)
        return batch.input_ids, batch.segment_ids, batch.positions, batch.cu_seqlens, index, self._first

    def on_device(self, batch: PackedBatch) -> PackedBatch:
        """The batch on the model's device."""
        return batch if batch.device == self.device else batch.to(self.device, non_blocking=True)


def session_of(model: Head, precision: str) -> InferenceSession:
    """The session of that precision that is kept on the model's encoder while it is current; else a new one.

    Nothing is kept of a model in training mode, nor where the modules themselves run.
    """
    encoder = model.encoder
    if model.training or not isinstance(encoder, BERTEncoder):
        return InferenceSession(model, precision)
    sessions: dict[str, InferenceSession] = encoder.sessions.setdefault(model, {})
    if (kept := sessions.get(precision)) is not None and kept.is_current():
        return kept
    if kept is not None:
        sessions.clear()  # those of other precisions are not current either
    session = InferenceSession(model, precision)
    if session._encoder is not None and session.is_current():
        session._model = weakref.ref(model)  # no cycle: a model is freed with its last reference
        sessions[precision] = session
    return session

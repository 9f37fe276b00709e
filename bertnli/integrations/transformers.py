"""BERT models of `transformers`: their own modules, called in a packed encoder that shares them.

Shapes in the comments: B sequences, padded to L; T tokens in all; H hidden units.
"""

from __future__ import annotations

import inspect
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import NoneType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.hooks import RemovableHandle
from transformers import BertModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert import modeling_bert
from transformers.utils.generic import TransformersKwargs

from bertnli.checkpoint.families import BERT, EMBEDDINGS, LAYERS
from bertnli.checkpoint.huggingface import ACTIVATIONS
from bertnli.encoder.bert import BERTEncoder, BERTModel, check_length
from bertnli.encoder.config import BERTConfig
from bertnli.encoder.plain import is_plain
from bertnli.encoder.shapes import shapes_only
from bertnli.inference.fusing import Items
from bertnli.inference.session import InferenceSession, session_of
from bertnli.tasks.base import Head
from bertnli.text.batch import PackedBatch

_log = logging.getLogger("bertnli")

# Paths of a BertModel's modules, and of bertnli's that do the same. {i} is the layer.
_DROPOUTS = {
    "embeddings.dropout": "encoder.embedding_dropout",
    "encoder.layer.{i}.attention.self.dropout": "encoder.blks.{i}.attention.dropout",
    "encoder.layer.{i}.attention.output.dropout": "encoder.blks.{i}.addnorm1.dropout",
    "encoder.layer.{i}.output.dropout": "encoder.blks.{i}.addnorm2.dropout",
}
_MODULES = {path: own for path, own in {**EMBEDDINGS, **LAYERS, **_DROPOUTS}.items() if own != "encoder.pos_embedding"}
# Arguments of BertModel.forward that the packed encoder understands.
_PACKED = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
# Others that it reads, also of other versions. It ignores the rest, such as earlier results in the features of a text.
_READ = {*inspect.signature(BertModel.forward).parameters, *TransformersKwargs.__annotations__, "position_bias"}
_READ = (_READ | {"head_mask", "past_key_values"}) - {*_PACKED, "return_dict", "use_cache", "num_items_in_batch"}
# Hooks that transformers registers, which know packed vectors too.
_HARMLESS_HOOKS = ("output_capturing_hook", "make_inputs_require_grads", "make_inputs_require_grad")
# Heads that read only the pooler's output.
_POOLED_HEADS = (
    modeling_bert.BertForSequenceClassification,
    modeling_bert.BertForNextSentencePrediction,
    modeling_bert.BertForMultipleChoice,
)


class CannotPackError(Exception):
    """The packed encoder does not compute what the model's modules do; the message says why."""


class _AllTokens(Head):
    pooled = False


class _FirstTokens(Head):
    pooled = True


def accelerate(model: nn.Module, precision: str) -> None:
    """See `bertnli.accelerate`."""
    berts = [module for module in model.modules() if isinstance(module, BertModel)]
    if not berts:
        raise ValueError(f"accelerate is for models with a BertModel of transformers; {_kind(model)} has none")
    packed = {}
    for bert in berts:
        try:
            packed[bert] = PackedForward(bert, precision)
            packed[bert].check()
        except CannotPackError as reason:
            raise ValueError(f"this model cannot be accelerated: {reason}") from None
    for bert, forward in packed.items():
        bert.forward = forward
    for module in model.modules():
        if type(module) in _POOLED_HEADS and module.bert in packed:
            module.forward = PooledHeadForward(module)


def _kind(model: nn.Module) -> str:
    """The model's class, with that of the encoder in a sentence-transformers model."""
    kinds = {getattr(m.config, "model_type", None) for m in model.modules() if hasattr(m, "config")} - {None}
    return type(model).__name__ + (f" (model_type {', '.join(sorted(map(str, kinds)))})" if kinds else "")


class OtherMethod:
    """A `forward`, or another `method`, of one module, kept on it: it holds that weakly, and is copied with it."""

    method = "forward"

    def __init__(self, module: nn.Module) -> None:
        self._module: Callable[[], Any] = weakref.ref(module)

    @property
    def module(self) -> Any:
        return self._module()

    @property
    def __signature__(self) -> inspect.Signature:
        signature = inspect.signature(getattr(type(self.module), self.method))
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def original(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(type(self.module), self.method)(self.module, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class PooledHeadForward(OtherMethod):
    """The `forward` of a head that reads only the pooler's output: its encoder computes `<cls>` only."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = self.module.bert.__dict__.get("forward")
        if not isinstance(forward, PackedForward):
            return self.original(*args, **kwargs)
        with forward.reading_first_tokens():
            return self.original(*args, **kwargs)


class PackedForward(OtherMethod):
    """The `forward` of an accelerated BertModel."""

    def __init__(self, module: BertModel, precision: str) -> None:
        super().__init__(module)
        self.precision = precision
        self._shared: SharedEncoder | None = None
        self._first = threading.local()
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        return {"module": self.module, "precision": self.precision}

    @contextmanager
    def reading_first_tokens(self) -> Iterator[None]:
        """Within it, a call in this thread computes the vectors of first tokens only: [B, 1, H]."""
        before = getattr(self._first, "only", False)
        self._first.only = True
        try:
            yield
        finally:
            self._first.only = before

    def check(self) -> None:
        """Raise CannotPackError, or the session's ValueError for its precision, if the model cannot be packed."""
        shared = self.current()
        if self.precision == "int8":
            InferenceSession(shared.head(False), "int8")

    def current(self) -> SharedEncoder:
        """The encoder, of the modules as they are now. Raises CannotPackError."""
        if self._shared is None or not self._shared.is_current(self.module):
            with torch.random.fork_rng(devices=()):  # layers that are replaced are initialised at random
                self._shared = SharedEncoder(self.module)
        return self._shared

    # The sizes of packed tensors depend on the mask, and the encoder's operators are fused already.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            inputs = _packed_inputs(self.module, args, kwargs)
            shared = self.current()
            first = getattr(self._first, "only", False) and _only_pools(self.module)
            vectors = self._vectors(shared, *inputs, first)
        except CannotPackError as reason:
            if not self._warned:
                self._warned = True
                _log.warning("a call of an accelerated BertModel runs its original modules: %s", reason)
            return self.original(*args, **kwargs)
        bert = self.module
        pooled = None if bert.pooler is None else bert.pooler(vectors)
        outputs = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=vectors, pooler_output=pooled)
        return_dict = kwargs.get("return_dict")
        return_dict = bert.config.return_dict if return_dict is None else return_dict
        return outputs if return_dict else outputs.to_tuple()

    def _vectors(
        self,
        shared: SharedEncoder,
        input_ids: Tensor,
        mask: Tensor | None,
        segments: Tensor | None,
        positions: Tensor | None,
        first: bool,
    ) -> Tensor:
        """Vectors of all tokens [B, L, H], zeros in the padding, or of the first ones [B, 1, H]."""
        shared.check_device(input_ids)
        batch, index = _pack(input_ids, mask, segments, positions, needs_first=self.module.pooler is not None)
        head, device = shared.head(first), batch.device.type
        as_is = self.precision == "fp32" and (device != "cpu" or torch.is_autocast_enabled(device))
        if as_is or shared.needs_modules():
            x = shared.encode(batch, head)
        else:
            x = shared.session(head, self.precision).features(batch)
        (count, length), width = input_ids.shape, x.shape[1]
        if first or index is None:
            return x.view(count, 1 if first else length, width)
        return x.new_zeros(count * length, width).index_copy_(0, index, x).view(count, length, width)


def _packed_inputs(
    bert: BertModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """input_ids, attention_mask, token_type_ids and position_ids; CannotPackError for what needs the modules."""
    if len(args) > len(_PACKED):
        raise CannotPackError(f"it has {len(args)} positional arguments")
    given = {**dict(zip(_PACKED, args, strict=False)), **kwargs}
    for name, value in given.items():
        if value is not None and value is not False and (name in _READ or name.startswith("output_")):
            raise CannotPackError(f"{name} is given")
    config = bert.config
    for name in ("output_hidden_states", "output_attentions"):
        if given.get(name) is None and getattr(config, name, False):
            raise CannotPackError(f"the config has {name}=True")
    ids, mask = given.get("input_ids"), given.get("attention_mask")
    if ids is None or ids.dim() != 2:
        raise CannotPackError("input_ids are not [batch, length]")
    if mask is not None and mask.shape != ids.shape:
        raise CannotPackError(f"attention_mask has shape {list(mask.shape)}, input_ids {list(ids.shape)}")
    return ids, mask, given.get("token_type_ids"), given.get("position_ids")


def _pack(
    input_ids: Tensor, mask: Tensor | None, segments: Tensor | None, positions: Tensor | None, needs_first: bool
) -> tuple[PackedBatch, Tensor | None]:
    """The tokens that are not masked, and their indices in the flattened [B * L], None for all.

    A token's position is its column, or that of `positions`, [B, L] or [1, L]. The mask may have gaps.
    """
    (count, length), device = input_ids.shape, input_ids.device
    index: Tensor | None = None
    if mask is not None:
        valid = mask.ne(0)
        if needs_first and not bool(valid[:, 0].all()):
            raise CannotPackError("the pooler reads each row's first column, which is padding in some")
        if not bool(valid.all()):
            index = valid.flatten().nonzero().squeeze(1)
    columns = torch.arange(length, device=device) if positions is None else positions
    segments = torch.zeros_like(input_ids) if segments is None else segments.expand(count, length)
    if index is None:
        bounds, longest = torch.arange(count + 1, device=device, dtype=torch.int32) * length, length
    else:
        lens = valid.sum(1)
        longest = int(lens.max())
        bounds = torch.cat([lens.new_zeros(1), lens.cumsum(0)]).to(torch.int32)

    def taken(ids: Tensor) -> Tensor:
        ids = ids.flatten() if index is None else ids.flatten()[index]
        return ids.clamp(-1, 2**31 - 1).to(torch.int32)  # beyond int32 it would wrap around to a valid id

    tokens = taken(input_ids), taken(segments), taken(columns.expand(count, length))
    return PackedBatch(*tokens, cu_seqlens=bounds, max_seqlen=longest), index


def _only_pools(bert: BertModel) -> bool:
    """True if nobody but the pooler sees the vectors of a call."""
    hooked = bert._forward_hooks or (bert.pooler is not None and bert.pooler._forward_pre_hooks)
    return bert.pooler is not None and not hooked and is_plain(bert.pooler, modeling_bert.BertPooler)


class SharedEncoder:
    """A BERTEncoder whose modules and parameters are those of a BertModel. Raises CannotPackError if it has others."""

    def __init__(self, bert: BertModel) -> None:
        with shapes_only():
            model = BERTModel(_config_of(bert))
        self.encoder: BERTEncoder = model.encoder
        self.layers = list(bert.encoder.layer)
        if not is_plain(bert.embeddings.position_embeddings, nn.Embedding):
            raise CannotPackError("embeddings.position_embeddings is not a plain nn.Embedding")
        table = bert.embeddings.position_embeddings
        self.position_weight: Tensor = table.weight
        self._positions: list[tuple[dict[str, Any], str, Any]] = [
            (bert.embeddings._modules, "position_embeddings", table),
            (table._parameters, "weight", self.position_weight),
        ]
        self.encoder.pos_embedding = cast(nn.Parameter, self.position_weight)
        self.position_memory = self.position_weight.data_ptr()
        paths = {
            path.format(i=i): own.format(i=i).removeprefix("encoder.")
            for path, own in _MODULES.items()
            for i in range(len(self.layers) if "{i}" in path else 1)
        }
        # What is not called itself: (children of the parent, name, module).
        parents = {path[:end] for path in paths for end, letter in enumerate(path) if letter == "."}
        activations = {f"encoder.layer.{i}.intermediate.intermediate_act_fn" for i in range(len(self.layers))}
        self.containers = []
        for path in sorted(parents | activations):
            children, name = _place(bert, path)
            module = children[name]
            expected = type(ACT2FN[bert.config.hidden_act]) if path in activations else nn.ModuleList
            if type(module) is not expected and type(module).__module__ != modeling_bert.__name__:
                raise CannotPackError(f"{path} is a {type(module).__name__}, not transformers' own")
            self.containers.append((children, name, module))
        # (children of the parent, name, children of bertnli's parent, name)
        self.places = [(*_place(bert, path), *_place(self.encoder, own)) for path, own in paths.items()]
        for module in model.modules():  # before any is shared
            module.training = False
        self.model, self._heads = model, {kind.pooled: kind(model, 1) for kind in (_FirstTokens, _AllTokens)}
        for head in self._heads.values():
            head.training = False
        self._hooks_seen: int | None = None  # the number of hooks made in all when there were none in the model
        self._seen, self._dropouts = Items(), list[nn.Dropout]()
        self._take()
        self.is_current(bert)

    def is_current(self, bert: BertModel) -> bool:
        """Take the BertModel's modules as they are now; False if it has other blocks than before."""
        if len(bert.encoder.layer) != len(self.layers):
            return False
        changed = not self._seen.are_same()
        if changed and not self._take():
            return False
        if self.position_weight.data_ptr() != self.position_memory:
            self.encoder.sessions.clear()
            self.position_memory = self.position_weight.data_ptr()
        hooks_seen = RemovableHandle.next_id
        if changed or hooks_seen != self._hooks_seen:
            self._hooks_seen = None
            _check_no_hooks(bert)
            self._hooks_seen = hooks_seen
        return True

    def _take(self) -> bool:
        """Take the modules that were replaced; False where that is not enough."""
        seen = Items()
        for children, name, module in self.containers:
            if children.get(name) is not module:
                return False
            if _has_other_forward(module):
                raise CannotPackError(f"the module {name!r} ({type(module).__name__}) has another forward")
            seen.add(children, name)
            seen.add(module.__dict__, "forward")
        for items, name, value in self._positions:
            if items.get(name) is not value:
                return False
            seen.add(items, name)
        for theirs, name, own, own_name in self.places:
            own[own_name] = theirs[name]
            seen.add(theirs, name)
        self.encoder.sessions.clear()
        self._dropouts = [m for _, _, own, name in self.places if isinstance(m := own[name], nn.Dropout)]
        self._seen = seen
        return True

    def head(self, first: bool) -> Head:
        """A head that gives the encoder's vectors of first tokens, or of all."""
        return self._heads[first]

    def session(self, head: Head, precision: str) -> InferenceSession:
        """A session of a head of this encoder, which sees layers that were changed in place too."""
        session = session_of(head, precision)
        if not session.is_unmodified():
            self.encoder.sessions.clear()
            session = session_of(head, precision)
        return session

    def check_device(self, input_ids: Tensor) -> None:
        """CannotPackError for a device or dtype that the operators do not know, ValueError for inputs elsewhere."""
        weight = self.position_weight
        if weight.device.type not in ("cpu", "cuda") or (weight.device.type == "cpu" and weight.dtype == torch.float16):
            raise CannotPackError(f"its parameters are {weight.dtype} on {weight.device}")
        if input_ids.device != weight.device:
            raise ValueError(
                f"input_ids are on {input_ids.device}, the model's parameters on {weight.device}. An accelerated model "
                "cannot be replicated by nn.DataParallel; use DistributedDataParallel (torchrun)"
            )

    def needs_modules(self) -> bool:
        """True in training mode or for gradients: a loss that embeds without and then with them gets equal vectors."""
        if any(dropout.training for dropout in self._dropouts):
            return True
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.encoder.parameters())

    def encode(self, batch: PackedBatch, head: Head) -> Tensor:
        """The vectors of all tokens [T, H], or of the first ones [B, H], with gradient checkpointing if that is on."""
        recompute = [layer for layer in self.layers if layer.gradient_checkpointing and layer.training]
        if not recompute or not torch.is_grad_enabled():
            return head.features(batch)
        check_length(batch, self.encoder.config.max_len)
        x = self.encoder.embed(batch)
        for layer, block in zip(self.layers, self.encoder.blks, strict=True):
            read = (head.token_index(batch), 1) if head.pooled and layer is self.layers[-1] else ()
            x = cast(Any, layer)._gradient_checkpointing_func(block.__call__, x, batch, *read)
        return x


def _place(module: nn.Module, path: str) -> tuple[dict[str, nn.Module], str]:
    """The children among which a path's module is, and its name there."""
    parent, _, name = path.rpartition(".")
    return cast(dict[str, nn.Module], module.get_submodule(parent)._modules), name


def _has_other_forward(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def _check_no_hooks(bert: BertModel) -> None:
    """Raise CannotPackError for a hook within the encoder: it expects padded inputs and outputs."""
    if _has_any_global_hook():
        raise CannotPackError("hooks are registered for all modules")
    for name, module in bert.named_modules():
        if name and not name.startswith("pooler") and _has_hooks(module):
            raise CannotPackError(f"{name} has hooks")


def _has_hooks(module: nn.Module) -> bool:
    """True for hooks but those of transformers that record outputs, or make the embeddings require gradients."""
    if module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    names = (getattr(hook, "__name__", None) for hook in module._forward_hooks.values())
    return any(name not in _HARMLESS_HOOKS for name in names)


def _config_of(bert: BertModel) -> BERTConfig:
    config = bert.config
    if config.is_decoder or getattr(config, "add_cross_attention", False):
        raise CannotPackError("it is a decoder (is_decoder=True)")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise CannotPackError(f"position_embedding_type is {config.position_embedding_type!r}, not 'absolute'")
    if not isinstance(config.hidden_act, str) or config.hidden_act not in ACTIVATIONS:
        raise CannotPackError(f"hidden_act is {config.hidden_act!r}; known: {', '.join(ACTIVATIONS)}")
    forward = vars(bert).get("forward")
    if type(bert).forward is not BertModel.forward or not isinstance(forward, (PackedForward, NoneType)):
        raise CannotPackError(f"{type(bert).__name__} has another forward than BertModel")
    # Not dropouts: the modules are shared.
    sizes = {name: getattr(config, key) for name, key in BERT.keys.items() if "dropout" not in name}
    sizes |= {"num_layers": len(bert.encoder.layer), "activation": ACTIVATIONS[config.hidden_act]}
    try:
        return BERTConfig.original(**sizes, pretraining_heads=False)
    except ValueError as error:
        raise CannotPackError(str(error)) from None

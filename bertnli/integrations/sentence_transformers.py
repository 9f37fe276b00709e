"""Whole calls of accelerated models of sentence-transformers, 5 and 6: their texts are tokenized and packed by bertnli.

A call that does more than that is left to the library, whose encoder is packed anyway.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, cast

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertForSequenceClassification, BertModel
from transformers.models.bert.modeling_bert import BertPooler

from bertnli.encoder.plain import is_plain
from bertnli.inference.fusing import Items
from bertnli.inference.session import InferenceSession
from bertnli.integrations.cross_encoder import converted, run_with_progress, scores_of
from bertnli.integrations.transformers import CannotPackError, OtherMethod, PackedForward, SharedEncoder
from bertnli.tasks.base import Head
from bertnli.tasks.classification import BERTClassifier
from bertnli.tasks.embedding import BERTEmbedder
from bertnli.text.encoded import EncodedTexts
from bertnli.text.wordpiece import WordPieceTokenizer

_log = logging.getLogger("bertnli")

_BATCH = 256  # in place of the library's default, which is for padded batches
_POOLINGS = ("mean", "max", "cls", "lasttoken", "mean_sqrt_len_tokens", "weightedmean")
# Of a Transformer module: what changes texts or tokens. All are off.
_SETTINGS = ("do_lower_case", "processing_kwargs", "query_length", "document_length", "query_expansion")
# Values of arguments that change nothing, beside the defaults of the others: a fused encoder is on the CPU.
_HARMLESS = {"device": (None, "cpu"), "task": ("query", "document")}
# What may be replaced on one object.
_METHODS = ("forward", "preprocess", "tokenize", "_inference", "_compiled_call_impl")


class NotPlainError(Exception):
    """The library must run the call itself; the message says why."""


def accelerate(model: nn.Module) -> None:
    """Give the models of sentence-transformers in `model`, whose BertModel is accelerated, their whole calls."""
    for module in model.modules():
        for call in (Encode, Predict):
            if _is_library(module, call.owner):
                setattr(module, call.method, call(module))


def _is_library(module: object, name: str) -> bool:
    """True for exactly that class of sentence-transformers, wherever its version has it."""
    return type(module).__name__ == name and type(module).__module__.startswith("sentence_transformers.")


def _require(condition: object, reason: str) -> None:
    if not condition:
        raise NotPlainError(reason)


class _Parts:
    """The modules that a call computes beside those of the encoder.

    transformer    the one that has the tokenizer
    others         all but the model, `transformer`, `bert` and its pooler
    """

    def __init__(self, model: nn.Module, transformer: Any, bert: BertModel, others: list[nn.Module]) -> None:
        self.transformer, self.bert = transformer, bert
        self._head: tuple[SharedEncoder, str, Head] | None = None
        pooler = () if bert.pooler is None else bert.pooler.modules()
        self._modules = list(dict.fromkeys((model, transformer, bert, *others, *pooler)))
        self._kinds = [type(module) for module in self._modules]
        self._children, self._count = model._modules, len(model._modules)
        self._hooks: list[Any] = []
        self._seen = Items()
        self._modes: Items | None = None
        for module in self._modules:
            self._hooks += [module._forward_hooks, module._forward_pre_hooks]
            for name in module._modules:
                self._seen.add(cast(Any, module._modules), name)
            for name in _METHODS:
                other = module.__dict__.get(name)
                _require(other is None or isinstance(other, OtherMethod), f"{type(module).__name__} has another {name}")
                self._seen.add(module.__dict__, name)
        _require(self.are_current(), "a module has hooks")

    def are_current(self) -> bool:
        """True if no module was replaced, added or hooked."""
        return (
            len(self._children) == self._count
            and self._seen.are_same()
            and list(map(type, self._modules)) == self._kinds
            and not any(self._hooks)
        )

    def head(self, shared: SharedEncoder, settings: str, make: Callable[[], Head]) -> Head:
        """What `make` gives; it is kept while encoder and settings are the same."""
        kept = self._head
        if kept is None or kept[0] is not shared or kept[1] != settings:
            with torch.random.fork_rng(devices=()):  # layers that are replaced are initialised at random
                kept = self._head = shared, settings, make()
            kept[2].training = False
        return kept[2]

    def set_eval_mode(self, model: nn.Module) -> None:
        """model.eval(), quickly where all modules are in that mode."""
        if self._modes is None or not self._modes.are_same():
            model.eval()
            modes = Items()
            for module in model.modules():
                modes.add(module.__dict__, "training")
            self._modes = modes


class _TokenizerCopy:
    """bertnli's tokenizer of a fast one, made anew when that changes."""

    def __init__(self) -> None:
        self._made: tuple[Any, Any, WordPieceTokenizer | str] | None = None

    def of(self, tokenizer: Any) -> WordPieceTokenizer:
        """Raises NotPlainError for one that bertnli does not have."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, tokenizers.Tokenizer) or not type(tokenizer).__module__.startswith("transformers."):
            raise NotPlainError(f"its tokenizer is a {type(tokenizer).__name__}")
        _require(tokenizer.padding_side == tokenizer.truncation_side == "right", "its tokenizer works on the left")
        names = tokenizer.model_input_names
        _require("token_type_ids" in names and "attention_mask" in names, "its tokenizer gives no segments or no mask")
        stages = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
        state = (
            backend.get_vocab_size(with_added_tokens=False),  # tokenizers 0.22 takes 8 ms to count all, as in len()
            backend.get_added_tokens_decoder(),
            tokenizer.split_special_tokens,
            *(None if stage is None else stage.__getstate__() for stage in stages),
        )
        made = self._made
        if made is None or made[0] is not tokenizer or made[1] != state:
            made = self._made = tokenizer, state, _copied(backend, tokenizer.split_special_tokens)
        if isinstance(made[2], str):
            raise NotPlainError(made[2])
        return made[2]


def _copied(backend: tokenizers.Tokenizer, split_special_tokens: bool) -> WordPieceTokenizer | str:
    """The tokenizer, or why it cannot be one of bertnli's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(backend.to_str(), encoding="utf-8")
        try:
            return WordPieceTokenizer.from_file(path, split_special_tokens=split_special_tokens)
        except ValueError as error:
            return str(error)


class _Call(OtherMethod):
    """A method of an accelerated model, from texts to results. As a bound method it keeps the model alive."""

    owner: str  # the class that has it
    output: tuple[str, str]  # what Transformer makes of it: sentence-transformers' name and transformers'
    arguments: tuple[str, ...]  # what it computes beside the inputs; others must be at their defaults

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._module = lambda: module
        self._defaults = {name: p.default for name, p in self.__signature__.parameters.items()}
        self._inputs = next(iter(self._defaults))
        self._library = logging.getLogger(type(module).__module__)
        self._tokenizer = _TokenizerCopy()
        self._parts: _Parts | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            options = self._options(args, kwargs)
            model = self.module
            if self._parts is None or not self._parts.are_current():
                self._parts = self.take(model)
            parts = self._parts
            _head, session = self._session(model, parts)  # a session does not keep its head
            encoded, single = self.encoded(model, parts, options)
        except (NotPlainError, CannotPackError, TypeError, ValueError) as reason:  # the library says what is wrong
            _log.debug("a call of %s.%s is left to sentence-transformers: %s", self.owner, self.method, reason)
            return self.original(*args, **kwargs)
        parts.set_eval_mode(model)
        show, batch_size = options["show_progress_bar"], options["batch_size"]
        if show is None:
            show = self._library.getEffectiveLevel() in (logging.INFO, logging.DEBUG)
        if batch_size == self._defaults["batch_size"]:
            batch_size = max(_BATCH, batch_size)
        with torch.inference_mode():
            outputs = run_with_progress(session, encoded, batch_size, "texts", show)
            results = self.results(model, outputs, options)
            return converted(results, single, options["convert_to_numpy"], options["convert_to_tensor"])

    def take(self, model: Any) -> _Parts:
        """The modules as they are. Raises NotPlainError for others than the call computes."""
        raise NotImplementedError

    def head(self, model: Any, parts: _Parts, shared: SharedEncoder) -> Head:
        """The head of the modules, with their settings as they are."""
        raise NotImplementedError

    def encoded(self, model: Any, parts: _Parts, options: dict[str, Any]) -> tuple[EncodedTexts, bool]:
        """The inputs, and whether they are a single one."""
        raise NotImplementedError

    def results(self, model: Any, outputs: Tensor, options: dict[str, Any]) -> Tensor:
        raise NotImplementedError

    def _options(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """All arguments by name. Raises NotPlainError for those that the call does not compute."""
        given = {self._inputs: args[0], **kwargs} if args else kwargs
        all_named = len(given) == len(args) + len(kwargs) and self._inputs in given
        _require(all_named, "an argument is positional or renamed")
        for name, value in kwargs.items():
            if name not in self.arguments and name != self._inputs:
                harmless = _HARMLESS.get(name, (self._defaults.get(name, ...),))
                _require(type(value) in (str, NoneType) and value in harmless, f"{name}={value!r:.60} is given")
        options = {**self._defaults, **given}
        _require(type(options["batch_size"]) is int and options["batch_size"] > 0, "batch_size is not positive")
        return options

    def _session(self, model: Any, parts: _Parts) -> tuple[Head, InferenceSession]:
        """The head of the modules as they are, and a session of it."""
        transformer, packed = vars(parts.transformer), parts.bert.__dict__.get("forward")
        _require(not any(map(transformer.get, _SETTINGS)), "a setting of its Transformer changes texts or tokens")
        output, key = self.output
        texts = {"text": {"method": "forward", "method_output_name": key}}
        _require(transformer.get("module_output_name", output) == output, "its Transformer has another output")
        _require(transformer.get("modality_config", texts) == texts, "its Transformer has other inputs or outputs")
        _require(vars(model).get("_distributed_inference") is None, "its inference is distributed")
        _require(not torch.is_autocast_enabled("cpu"), "autocast is on")
        if not isinstance(packed, PackedForward):
            raise NotPlainError("its encoder is not accelerated")
        shared = packed.current()
        head = self.head(model, parts, shared)
        session = shared.session(head, packed.precision)
        _require(session.encoder_is_fused, "its encoder is not the fused operator's")
        return head, session

    def _tokenizer_and_length(self, parts: _Parts) -> tuple[WordPieceTokenizer, int]:
        tokenizer, positions = parts.transformer.tokenizer, parts.bert.config.max_position_embeddings
        copied = self._tokenizer.of(tokenizer)
        longest = vars(parts.transformer).get("max_seq_length") or tokenizer.model_max_length
        _require(
            type(longest) is int and 3 <= longest <= positions,
            "max_seq_length is none, below 3 or beyond the positions",
        )
        return copied, longest


class Encode(_Call):
    """`SentenceTransformer.encode`."""

    method = "encode"
    owner = "SentenceTransformer"
    output = "token_embeddings", "last_hidden_state"
    arguments = (
        "prompt_name", "prompt", "batch_size", "show_progress_bar", "convert_to_numpy", "convert_to_tensor",
        "normalize_embeddings",
    )  # fmt: skip

    def take(self, model: Any) -> _Parts:
        transformer, *others = model._modules.values()
        _require(_is_library(transformer, "Transformer"), "its first module is no Transformer")
        kinds = [type(module).__name__ for module in others if _is_library(module, type(module).__name__)]
        _require(kinds in (["Pooling"], ["Pooling", "Normalize"]), "it has other modules than Pooling and Normalize")
        _require(len(kinds) == len(others), "it has custom modules")
        bert = transformer.auto_model
        _require(type(bert) is BertModel, f"its encoder is a {type(bert).__name__}")
        return _Parts(model, transformer, bert, others)

    def head(self, model: Any, parts: _Parts, shared: SharedEncoder) -> Head:
        _, pooling, *normalize = model._modules.values()
        settings = vars(pooling)
        kind = settings["pooling_mode"] if "pooling_mode" in settings else pooling.get_pooling_mode_str()
        _require(kind in _POOLINGS, "its pooling is not one of bertnli's")
        return parts.head(shared, kind, lambda: BERTEmbedder(shared.model, pooling=kind, normalize=bool(normalize)))

    def encoded(self, model: Any, parts: _Parts, options: dict[str, Any]) -> tuple[EncodedTexts, bool]:
        texts = options[self._inputs]
        single = type(texts) is str
        texts = [texts] if single else texts.tolist() if isinstance(texts, np.ndarray) else texts
        _require(type(texts) is list and texts, "the inputs are neither a text nor a list of texts")
        _require(vars(model)["truncate_dim"] is None, "truncate_dim is set")
        prompt, name = options["prompt"], options["prompt_name"]
        _require(prompt is None or name is None, "prompt and prompt_name are given")
        if prompt is None:
            _require(name is None or name in model.prompts, "it has no such prompt")
            prompt = model.prompts.get(model.default_prompt_name if name is None else name)
        if prompt:
            _require(list(model._modules.values())[1].include_prompt, "its pooling leaves the prompt out")
            texts = [prompt + text for text in texts]
        tokenizer, longest = self._tokenizer_and_length(parts)
        return tokenizer.encode_texts(texts, longest), single

    def results(self, model: Any, outputs: Tensor, options: dict[str, Any]) -> Tensor:
        return F.normalize(outputs, dim=1) if options["normalize_embeddings"] else outputs


class Predict(_Call):
    """`CrossEncoder.predict`, which `rank` calls."""

    method = "predict"
    owner = "CrossEncoder"
    output = "scores", "logits"
    arguments = (
        "batch_size", "show_progress_bar", "activation_fn", "apply_softmax", "convert_to_numpy", "convert_to_tensor",
    )  # fmt: skip

    def take(self, model: Any) -> _Parts:
        transformer = model  # of sentence-transformers 5
        if isinstance(model, nn.Sequential):
            transformer = next(iter(model), None)
            _require(_is_library(transformer, "Transformer") and len(model) == 1, "it has other modules")
        classifier = transformer.model
        _require(type(classifier) is BertForSequenceClassification, f"its model is a {type(classifier).__name__}")
        layers = [*classifier.bert.pooler.modules(), classifier.dropout, classifier.classifier]
        kinds: list[type[nn.Module]] = [BertPooler, nn.Linear, nn.Tanh, nn.Dropout, nn.Linear]
        plain = len(layers) == len(kinds) and all(map(is_plain, layers, kinds))
        _require(plain, "its head has custom layers")
        return _Parts(model, transformer, classifier.bert, [classifier, *layers])

    def head(self, model: Any, parts: _Parts, shared: SharedEncoder) -> Head:
        pooler: Any = parts.bert.pooler
        output = parts.transformer.model.classifier

        def make() -> Head:
            head = BERTClassifier(shared.model, output.out_features)
            head.hidden, head.output = nn.Sequential(pooler.dense, pooler.activation), output
            return head

        return parts.head(shared, "", make)

    def encoded(self, model: Any, parts: _Parts, options: dict[str, Any]) -> tuple[EncodedTexts, bool]:
        pairs, columns = options[self._inputs], parts.transformer.model.classifier.out_features
        pairs = pairs.tolist() if isinstance(pairs, np.ndarray) and pairs.ndim == 2 else pairs
        _require(type(pairs) in (list, tuple) and pairs, "the inputs are neither a pair nor a list of pairs")
        single = type(pairs[0]) is str
        pairs = [pairs] if single else pairs
        _require(type(pairs) is list, "the inputs are no list")
        _require(all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs), "the inputs are no pairs")
        _require(model.config.num_labels == columns, "num_labels is not that of its output layer")
        _require(not options["apply_softmax"] or columns > 1, "a softmax of one output is asked for")
        if options["activation_fn"] is not None:
            _require(
                not hasattr(type(model), "set_activation_fn"), "it keeps the activation"
            )  # sentence-transformers 5
        _require(not getattr(model, "default_prompt_name", None), "it has a default prompt")
        tokenizer, longest = self._tokenizer_and_length(parts)
        first, second = zip(*pairs, strict=True)
        return tokenizer.encode_pairs(first, second, longest, "longest_first_hf"), single

    def results(self, model: Any, outputs: Tensor, options: dict[str, Any]) -> Tensor:
        activation = options["activation_fn"]
        return scores_of(outputs, model.activation_fn if activation is None else activation, options["apply_softmax"])

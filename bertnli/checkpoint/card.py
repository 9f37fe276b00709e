"""The model card: a README.md beside every saved model, of what is known about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bertnli.data.files import atomic_path
from bertnli.encoder.bert import BERTModel
from bertnli.tasks.base import Head
from bertnli.tasks.embedding import BERTEmbedder

CARD = "README.md"
_MARK = "<!-- Written by bertnli at each save. Remove this line to keep your own text. -->"
_TAGS = {
    "classification": "text-classification",
    "regression": "text-classification",
    "multilabel": "text-classification",
    "embedding": "sentence-similarity",
    "tagging": "token-classification",
    "qa": "question-answering",
}
_KEYS = {"base", "license", "teacher", "train", "dev", "version", "run"}  # of a model's `provenance`


def provenance_of(folder: Path, name: str) -> dict[str, Any]:
    """What a model knows of the checkpoint that it begins with: its name, and the licence in its README.md.

    name    as it was asked for; of a local folder its last part counts
    """
    base = folder.resolve().name if Path(name).is_dir() else name
    cached = re.fullmatch("models--(.+)", folder.resolve().parent.parent.name)
    if cached and folder.resolve().parent.name == "snapshots":  # in huggingface_hub's cache
        base = cached[1].replace("--", "/")
    found: dict[str, Any] = {"base": base}
    try:
        text = (folder / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return found
    matter = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if matter and (line := re.search(r"^license:[ \t]*([\w.-]+)[ \t]*$", matter[1], re.MULTILINE)):
        found["license"] = line[1]
    return found


def check_provenance(value: Any, where: str) -> dict[str, Any]:
    """The provenance in a configuration. Raises ValueError where it is not an object of plain values."""
    if value is None:
        return {}
    texts = _KEYS - {"run"}
    if (
        not isinstance(value, dict)
        or not value.keys() <= _KEYS
        or not all(isinstance(value[key], str) for key in value.keys() & texts)
        or not isinstance(value.get("run", {}), dict)
    ):
        raise ValueError(f"{where} must be an object with the keys {', '.join(sorted(_KEYS))}; found {value!r}")
    return value


def is_own_card(path: Path) -> bool:
    """Whether bertnli wrote this README.md, so that it may replace it."""
    return _MARK in path.read_text(encoding="utf-8", errors="replace")


def write_card(model: Head | BERTModel, folder: Path, format: str) -> None:
    """Write README.md, unless there is one that bertnli did not write."""
    path = folder / CARD
    if path.exists() and not is_own_card(path):
        return
    with atomic_path(path) as temporary:
        temporary.write_text(model_card(model, folder.resolve().name, format), encoding="utf-8", newline="\n")


def model_card(model: Head | BERTModel, title: str, format: str) -> str:
    """The text of the card.

    format    "bertnli", "huggingface", "onnx" or "d2l": how the model is loaded
    """
    known, config = model.provenance, model.config
    library = "sentence-transformers" if isinstance(model, BERTEmbedder) else "transformers"
    matter = {"library_name": library if format == "huggingface" else "bertnli"}
    matter |= {"license": known["license"]} if "license" in known else {}
    matter |= {"base_model": known["base"]} if "/" in known.get("base", "") else {}
    matter |= {"pipeline_tag": _TAGS[model.task]} if isinstance(model, Head) and model.task in _TAGS else {}
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    lines = [
        *("---", *(f"{key}: {value}" for key, value in matter.items()), "---", _MARK, "", f"# {title}", ""),
        f"BERT encoder of {config.num_layers} layers, {config.num_hiddens} wide, {millions:.1f} million parameters.",
        "",
        *_facts(model),
        "",
        *_commands(model, format),
        *("## Licence", "", _licence(known), ""),
    ]
    return "\n".join(lines)


def _facts(model: Head | BERTModel) -> list[str]:
    known = model.provenance
    base = known.get("base")
    facts = [f"- Begun from: {f'`{base}`' if base else 'random weights, or weights of unknown origin'}"]
    if "teacher" in known:
        facts.append(f"- Distilled from: `{known['teacher']}`")
    if not isinstance(model, Head):
        return [*facts, "- Task: none; it has no output layer"]
    texts = {1: " of single texts", 2: " of pairs of texts"}.get(model.settings.get("texts", 0), "")
    facts.append(f"- Task: {model.task}{texts}")
    if model.label_names is not None:
        facts.append(f"- Labels: {', '.join(map(str, model.label_names))}")
    facts.append(f"- Tokens of a sequence at most: {model.sequence_len()}")
    if isinstance(model, BERTEmbedder):
        return facts
    if (pooled := model.settings.get("windows")) is not None:
        facts.append(
            f"- Longer texts: windows that share {model.settings.get('stride', 0)} tokens, the {pooled} of outputs"
        )
    run = known.get("run")
    if run is None:
        return [*facts, "- Training: not recorded"]
    named = f" of `{known['train']}`" if "train" in known else ""
    facts.append(f"- Training data: {run['train_sequences']} sequences{named}")
    facts.append("- Options: " + ", ".join(f"{name} {value}" for name, value in run["options"].items()))
    if "version" in known:
        facts.append(f"- Trained with: bertnli {known['version']}")
    if run["score"] is None:
        return [*facts, "- Figures: not measured"]
    named = f" of `{known['dev']}`" if "dev" in known else ""
    facts.append(f"- Dev data: {run['dev_sequences']} sequences{named}")
    chosen = f", epoch {run['epoch']} of {run['options']['epochs']}, chosen by this figure" if run["chosen"] else ""
    return [*facts, f"- Dev {run['metric']}: {run['score']:.4f}{chosen}. No test data were used."]


def _commands(model: Head | BERTModel, format: str) -> list[str]:
    if not isinstance(model, Head) or format not in ("bertnli", "huggingface"):
        return []
    commands = ["bertnli predict --model FOLDER --input FILE", "bertnli evaluate --model FOLDER --data FILE"]
    if isinstance(model, BERTEmbedder):
        commands = ["bertnli encode --model FOLDER --input FILE --output vectors.npy"]
    return ["## Commands", "", "```sh", *commands, "```", ""]


def _licence(known: dict[str, Any]) -> str:
    if "license" in known:
        return f"`{known['base']}` is under `{known['license']}`, as its model card says."
    if "base" in known:
        return f"The files of `{known['base']}` state no licence. Find it out before you pass this model on."
    return "None is stated."

"""Safetensors files, read instead of mapped: a process that reads a mapped file ends by SIGBUS when it is shortened."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertnli.data.files import unchanged, without_repeats

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "BOOL": torch.bool,
    **{f"I{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": getattr(torch, f"uint{bits}") for bits in (8, 16, 32, 64)},
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes, as the safetensors package has it


def read_tensors(path: Path, problem: str = "is not a safetensors file") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by name, views of one block of memory, and the metadata.

    problem    what an error says of a damaged file

    Raises FileNotFoundError, and ValueError for a file of another kind, a damaged one, and one that changes while it is
    read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with open(path, "rb") as file, unchanged(file, path):
        content = np.fromfile(file, np.uint8, os.fstat(file.fileno()).st_size)
    try:
        header, begin = _header(content)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are not strings")
        data = torch.from_numpy(content)[begin:]
        _check_places(header, len(data))
        return {name: _tensor(data, entry) for name, entry in header.items()}, metadata
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} {problem}: {error}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file. Equal contents are equal bytes.

    The package's `save_file` writes another file beside it, which stays if the process is killed.
    """
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    names, end = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)), 0  # each is aligned
    for name in names:
        x, begin = tensors[name], end
        end += x.numel() * x.element_size()
        entries[name] = {"dtype": _NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            x = tensors[name].detach().cpu().contiguous()
            file.write(x.as_strided([x.numel()], [1]).view(torch.uint8).numpy().data)


def _header(content: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[dict[str, Any], int]:
    """The entries, and where the data begin."""
    begin = 8 + int.from_bytes(content[:8].tobytes(), "little")
    if not 8 < begin <= min(len(content), _MAX_HEADER):
        raise ValueError("it has no header")
    header = json.loads(content[8:begin].tobytes().decode(), object_pairs_hook=without_repeats)
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header, begin


def _check_places(header: dict[str, Any], size: int) -> None:
    """Raise ValueError unless the tensors have known types and shapes and fill the data without gap or overlap."""
    places = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name} lacks dtype, shape or data_offsets")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name} is of the unknown type {entry['dtype']!r}")
        for values in (shape, offsets):
            if not isinstance(values, list) or not all(type(n) is int and 0 <= n < 2**63 for n in values):
                raise ValueError(f"{name} has a shape or offsets that are not natural numbers")
        if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * _DTYPES[entry["dtype"]].itemsize:
            raise ValueError(f"{name} has offsets that do not fit its shape")
        places.append(offsets)
    places.sort()
    if [begin for begin, _ in places] + [size] != [0] + [end for _, end in places]:
        raise ValueError("its tensors do not fill the file")


def _tensor(data: Tensor, entry: dict[str, Any]) -> Tensor:
    dtype, (begin, end) = _DTYPES[entry["dtype"]], entry["data_offsets"]
    part = data[begin:end]
    aligned = part if part.storage_offset() % dtype.itemsize == 0 else part.clone()
    return aligned.view(dtype).view(entry["shape"])

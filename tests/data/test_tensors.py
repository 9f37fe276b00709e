"""Safetensors files as the safetensors package writes and refuses them, and text that changes while it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertnli.data.files import open_text
from bertnli.data.tensors import read_tensors, write_tensors

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]


def test_every_type_and_shape(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wanted = {
        f"{name} {shape}": (torch.randn(shape) * 9).to(getattr(torch, name))
        for name in DTYPES
        for shape in ([], [0], [3], [2, 0], [3, 5])
    }
    wanted["expanded"] = torch.zeros(1).expand(4).contiguous()[:1].expand(1)
    wanted["strided"] = torch.arange(6).view(2, 3).T[:1].expand(1, 2)
    path, extra = tmp_path / "x.safetensors", {"c": "d", "a": "b"}
    safetensors.torch.save_file({name: x.clone().contiguous() for name, x in wanted.items()}, path, extra)
    found, metadata = read_tensors(path)
    assert_equal(found, wanted)
    assert metadata == extra
    write_tensors(path, wanted, extra)
    written = path.read_bytes()
    assert_equal(safetensors.torch.load_file(path), wanted)
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == extra
    write_tensors(path, dict(reversed(wanted.items())), dict(reversed(extra.items())))
    assert path.read_bytes() == written


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_what_the_package_refuses_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Files with one changed part: those that the package reads are read as it reads them."""
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    header: dict[str, dict[str, Any]] = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "I64", "shape": [2], "data_offsets": [24, 40]},
    }
    numbers = st.sampled_from([0, 1, 2, 3, 6, 16, 24, 40, 41, -1, 2**31, 2**63, 1.5, None, "2"])
    key = data.draw(st.sampled_from(["a", "b"]))
    part = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "absent", "tail", "byte", "nothing"]))
    tail = bytes(range(40))
    if part == "dtype":
        header[key]["dtype"] = data.draw(st.sampled_from(["F32", "I64", "F16", "U8", "BF16", "X", "", "f32"]))
    elif part in ("shape", "data_offsets"):
        header[key][part] = data.draw(st.lists(numbers, max_size=3))
    elif part == "absent":
        del header[key]
    elif part == "tail":
        tail = tail[: data.draw(st.integers(0, 40))] + bytes(data.draw(st.integers(0, 9)))
    text = json.dumps(header).encode()
    content = bytearray(len(text).to_bytes(8, "little") + text + tail)
    if part == "byte":
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        wanted = safetensors.torch.load_file(path)
    except Exception:  # the package raises errors of many kinds
        with pytest.raises(ValueError, match=r"changed\.safetensors is not a safetensors file"):
            read_tensors(path)
        return
    found, _ = read_tensors(path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name].nan_to_num(), wanted[name].nan_to_num()) for name in wanted)


@pytest.mark.parametrize("own_error", [False, True])
def test_text_that_changes_while_it_is_read(tmp_path: Path, own_error: bool) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n" * 1000)

    def read() -> None:
        with open_text(path) as lines:
            next(lines)
            path.write_text("a,b\n")
            list(lines)
            if own_error:
                raise ValueError("a row is broken")

    with pytest.raises(ValueError, match=r"x\.csv: the file changed while it was read"):
        read()

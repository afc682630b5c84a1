"""Files of tensors: what is read of one is of one moment, whatever another process puts in its place meanwhile."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sinkscope.errors import SinkscopeError
from sinkscope.tensors import read_tensors, write_tensors


def stored(path: Path, size: int) -> Path:
    write_tensors(path, "the tensors", "sinkscope test", {"a": torch.full((size,), float(size))}, {"size": str(size)})
    return path


def changing_when_opened(monkeypatch, path: Path, copies: list[bytes]) -> list[int]:
    """Put another of the files in the place of `path` right after each time it is opened, as another process may."""
    opened, times = Path.open, [0]

    def open_and_change(self, *args, **kwargs):
        file = opened(self, *args, **kwargs)
        if self == path and "r" in (args[0] if args else "r"):
            times[0] += 1
            other = path.with_name("other")
            with opened(other, "wb") as into:
                into.write(copies[times[0] % len(copies)])
            os.replace(other, path)
        return file

    monkeypatch.setattr(Path, "open", open_and_change)
    return times


def test_a_file_that_is_replaced_while_it_is_read_or_written_over_is_whole(tmp_path, monkeypatch):
    path = stored(tmp_path / "kept.safetensors", 10)
    copies = [path.read_bytes(), stored(tmp_path / "longer.safetensors", 1000).read_bytes()]
    times = changing_when_opened(monkeypatch, path, copies)
    sizes = set()
    for _ in range(4):
        tensors, about = read_tensors(path, "the tensors", "sinkscope test", "write it again")
        size = int(about["size"])
        assert torch.equal(tensors["a"], torch.full((size,), float(size)))
        sizes.add(size)
    assert sizes == {10, 1000}
    before = times[0]
    stored(path, 500)  # which looks whether it is its own
    assert times[0] > before
    tensors, _ = read_tensors(path, "the tensors", "sinkscope test", "write it again")
    assert tensors["a"].shape == (500,)


def test_a_dtype_that_torch_does_not_read_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(SinkscopeError, match=r"tensors of a kind that sinkscope never writes \('F8_E8M0'\); do so"):
        read_tensors(path, "the tensors", None, "do so")


def test_a_file_that_only_names_sinkscope_is_somebody_elses(tmp_path):
    path = tmp_path / "theirs.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata={"kind": "sinkscope-like by someone"})
    before = path.read_bytes()
    with pytest.raises(SinkscopeError):
        stored(path, 3)
    assert path.read_bytes() == before

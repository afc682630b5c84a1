"""Tensors and what belongs to them in one safetensors file, never torn and never damaged unnoticed."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sinkscope.errors import SinkscopeError
from sinkscope.files import replacing


def write_tensors(path: Path, what: str, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write tensors and texts about them; an older file is replaced in one step.

    Raises:
        SinkscopeError: the folder cannot be written, or the disk is full; an older file stays as it was.
    """
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path, what) as partial:
        try:
            save_file(stored, partial, metadata=about | {"checksum": _checksum(stored)})
        except SafetensorError as problem:  # how it reports a full disk
            raise OSError(str(problem)) from problem
        with partial.open("rb") as file:
            os.fsync(file.fileno())


def read_tensors(path: Path, what: str, advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and texts of a file that `write_tensors` wrote.

    Raises:
        SinkscopeError: another kind of file, or a damaged one.
    """
    try:
        with safe_open(path, framework="pt") as stored:
            about = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as problem:
        raise SinkscopeError(f"{what} {path} is damaged or torn ({problem}); {advice}.") from problem
    if "checksum" not in about:
        raise SinkscopeError(f"{path} is a safetensors file, but not one that sinkscope wrote; {advice}.")
    if about.pop("checksum") != _checksum(tensors):
        raise SinkscopeError(f"{what} {path} is damaged: its numbers are not those that were saved; {advice}.")
    return tensors, about


def _checksum(tensors: dict[str, Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        numbers = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(numbers.data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"

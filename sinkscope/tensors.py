"""Files of tensors and texts about them, with a checksum over all they hold."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from sinkscope.errors import SinkscopeError
from sinkscope.files import replacing
from sinkscope.seals import not_own

HEADER = 16 * 2**20  # bytes of a header at most: it names tensors and settings


def write_tensors(path: Path, what: str, kind: str, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write tensors and texts about them; an older file that this function wrote is replaced in one step.

    Raises:
        SinkscopeError: another file is there; the folder cannot be written, or the disk is full. What is there stays.
    """
    if path.is_file() and not _is_own(path):
        raise not_own(path, what)
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    told = about | {"kind": kind}
    with replacing(path, what) as partial:
        try:
            save_file(stored, partial, metadata=told | {"checksum": _checksum(stored, told)})
        except SafetensorError as problem:  # how it reports a full disk
            raise OSError(str(problem)) from problem
        with partial.open("rb") as file:
            os.fsync(file.fileno())


def read_tensors(path: Path, what: str, kind: str | None, advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and texts of a file that `write_tensors` wrote, of the same kind, or of any when None.

    Raises:
        SinkscopeError: another kind of file, one of another release, or a damaged one.
    """
    try:
        with path.open("rb") as file:
            about = _about(file)
            file.seek(0)
            tensors = load(file.read())
    except KeyError as problem:  # a dtype that the format has, and torch's reader has not
        raise SinkscopeError(
            f"{path} holds tensors of a kind that sinkscope never writes ({problem}); {advice}."
        ) from None
    except (OSError, SafetensorError, ValueError, RuntimeError) as problem:
        raise SinkscopeError(f"{what} {path} is damaged or torn ({problem}); {advice}.") from problem
    checksum = about.pop("checksum", None)
    if checksum is None:
        raise SinkscopeError(f"{path} is a safetensors file, but not one that sinkscope wrote; {advice}.")
    if len(checksum) == 8:  # which covered the tensors alone
        raise SinkscopeError(f"{what} {path} is of an earlier release, which cannot be checked as a whole; {advice}.")
    if checksum != _checksum(tensors, about):
        raise SinkscopeError(f"{what} {path} is damaged: it is not what was saved; {advice}.")
    if kind is not None and about.get("kind") != kind:
        raise SinkscopeError(f"{path} is a {about.get('kind')}, and {what} is looked for ({kind}); {advice}.")
    return tensors, about


def _is_own(path: Path) -> bool:
    """Whether a file is empty, or one of tensors whose header says that sinkscope wrote it."""
    with suppress(OSError, ValueError, RecursionError), path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return True
        about = _about(file)
        return "checksum" in about and about.get("kind", "").startswith("sinkscope")
    return False


def _about(file: BinaryIO) -> dict[str, str]:
    """The texts about the tensors of an open file, from its header.

    `safe_open` opens a file by its name a second time, where another process may have put its own by then.

    Raises:
        ValueError: it is no header.
    """
    size = int.from_bytes(file.read(8), "little")
    if size > HEADER:
        raise ValueError(f"its header would take {size:,} bytes")
    header = json.loads(file.read(size))
    about = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(about, dict) or not all(isinstance(text, str) for text in about.values()):
        raise ValueError("it has no header of a safetensors file")
    return about


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """SHA-256 of all that a file holds: its texts, and name, type, shape and bits of each tensor."""
    digest = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

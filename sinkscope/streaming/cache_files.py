"""Sink caches as files: one safetensors file, written beside and renamed, with what it belongs to."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sinkscope.errors import SinkscopeError

KIND = "sinkscope sink cache 1"
SAMPLED = 16  # numbers looked at from either end of a weight


def write_cache(path: Path, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Write a cache's tensors and settings.

    Raises:
        SinkscopeError: the folder cannot be written, or the disk is full; an older file stays as it was.
    """
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"kind": KIND, "settings": json.dumps(settings), "checksum": _checksum(stored)}
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        save_file(stored, partial, metadata=metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise SinkscopeError(f"cannot write the cache to {path}: {reason}.") from problem
    finally:
        partial.unlink(missing_ok=True)


def read_cache(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and settings of a cache that `write_cache` wrote.

    Raises:
        SinkscopeError: no such file, another kind of file, or a damaged one.
    """
    if not path.is_file():
        raise SinkscopeError(f"there is no cache at {path}.")
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as problem:
        raise SinkscopeError(f"{path} is torn or no safetensors file ({problem}); save the cache again.") from problem
    if metadata.get("kind") != KIND:
        raise SinkscopeError(f"{path} is a safetensors file, but not a cache that SinkCache.save wrote.")
    if metadata.get("checksum") != _checksum(tensors):
        raise SinkscopeError(f"{path} is damaged: its numbers are not those that were saved; save the cache again.")
    return tensors, json.loads(metadata["settings"])


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """A name for a model's weights: a hash over some numbers of each."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        flat = weight.detach().reshape(-1)
        ends = torch.cat([flat[:SAMPLED], flat[-SAMPLED:]]).double().cpu()
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + ends.numpy().tobytes())
    return digest.hexdigest()


def _checksum(tensors: dict[str, Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        numbers = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(numbers.data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"

"""Sink caches as files, each with what it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from sinkscope.errors import SinkscopeError
from sinkscope.streaming.tensor_files import read_tensors, write_tensors

KIND = "sinkscope sink cache 1"


def write_cache(path: Path, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Write a cache's tensors and settings.

    Raises:
        SinkscopeError: the folder cannot be written, or the disk is full; an older file stays as it was.
    """
    write_tensors(path, "the cache", tensors, {"kind": KIND, "settings": json.dumps(settings)})


def read_cache(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and settings of a cache that `write_cache` wrote.

    Raises:
        SinkscopeError: no such file, another kind of file, or a damaged one.
    """
    if not path.is_file():
        raise SinkscopeError(f"there is no cache at {path}.")
    tensors, about = read_tensors(path, "the cache", "save it again")
    if about.get("kind") != KIND:
        raise SinkscopeError(f"{path} is a file of sinkscope, but not a cache that SinkCache.save wrote.")
    return tensors, json.loads(about["settings"])

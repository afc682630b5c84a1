"""What is needed to repeat a measurement, as attributes of the record."""

from __future__ import annotations

import datetime
import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

import sinkscope
from sinkscope.hf.models import begin_token, model_type, name_or_path, revision


def model_attributes(model: nn.Module) -> dict[str, Any]:
    """Name, family, revision, dtype and device of a model, and the versions of what ran it."""
    parameter = next(model.parameters(), torch.empty(0))
    return {
        "model": _public_name(name_or_path(model)) or type(model).__name__,
        "model_type": model_type(model),
        "revision": revision(model),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
        "sinkscope": sinkscope.__version__,
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _public_name(name: str) -> str:
    """A name on the hub as it is; of a path its last part, since the folders of one machine mean nothing elsewhere."""
    return Path(name).name if Path(name).exists() or Path(name).is_absolute() else name


def token_attributes(record: xr.Dataset, model: nn.Module) -> dict[str, Any]:
    """How many tokens were read, their hash, and whether every sequence starts with the model's BOS token."""
    if "token_id" not in record.coords:
        return {"sequences": record.sizes["sequence"], "tokens": int(record.length.sum()), "bos": "unknown"}
    ids = record.token_id.values
    bos = begin_token(model)
    starts = "unknown"
    if bos is not None and bool((ids[:, 0] >= 0).all()):
        starts = "yes" if np.isin(ids[:, 0], bos).all() else "no"
    return {
        "sequences": len(ids),
        "tokens": int((ids >= 0).sum()),
        "tokens_sha256": hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest(),
        "bos": starts,
    }


def weights_hash(model: nn.Module) -> str:
    """A hash that changes with the weights: of sums over pieces of each parameter, its bits read as whole numbers."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        bits = values.view(whole.get(values.itemsize, torch.uint8))
        sums = torch.stack([piece.sum(dtype=torch.int64) for piece in bits.chunk(64)])  # exact in any order
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode() + sums.cpu().numpy().tobytes())
    return digest.hexdigest()

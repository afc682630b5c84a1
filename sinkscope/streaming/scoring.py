"""The losses of next tokens, and texts as records keep them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 256  # logits turned into float32 at once


def next_token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each target, float32, nats.

    Args:
        logits: [.., vocabulary] of the tokens before.
        targets: [..] ids, on the same device.
    """
    rows, ids = logits.flatten(0, -2).split(ROWS), targets.flatten().split(ROWS)
    losses = [F.cross_entropy(row.float(), each, reduction="none") for row, each in zip(rows, ids, strict=True)]
    return torch.cat(losses).unflatten(0, targets.shape)


def text_coordinates(texts: Sequence[Tensor]) -> dict[str, Any]:
    """Coordinates of a record of texts [token]: `sequence`, `token`, `length` and `token_id`, -1 past the end."""
    lengths = [len(text) for text in texts]
    ids = np.full((len(texts), max(lengths)), -1, dtype=np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = text.cpu().numpy()
    return {
        "sequence": np.arange(len(texts)),
        "token": np.arange(max(lengths)),
        "length": ("sequence", lengths),
        "token_id": (("sequence", "token"), ids),
    }

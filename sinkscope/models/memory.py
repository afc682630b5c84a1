"""How much memory a run takes beside the weights, told before it begins: an error then, and no killed process later.

    perplexity   tokens kept * keys and values + tokens at once * (2 layers + vocabulary) + pieces of logits + TILES
    measure      tokens at once * layers * (4 hidden + widest) + twice the measurements + TILES

A layer is the activations of one, 6 hidden + 4 widest numbers for each token, where widest is the widest matrix inside
it. While layers are measured the process keeps the room that each of them took. The formulas are estimates:
`benchmarks/memory.py` sets them beside what runs took.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import nn

from sinkscope.errors import SinkscopeError
from sinkscope.hf.models import head_width, input_embeddings, key_value_heads, query_heads, vocabulary_size
from sinkscope.hf.placement import reading_device
from sinkscope.models.facts import find_anatomy

TILES = 48 * 2**20  # bytes of scores, probabilities and their logarithms at once
PIECE = 256 * 3 * 4  # bytes, for each token of the vocabulary, of logits that become losses
GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat")


class Sizes(NamedTuple):
    """What the activations of a model follow from."""

    hidden: int
    widest: int  # rows of the widest matrix inside the layers
    vocabulary: int
    layers: int
    key_values: int  # numbers that all layers keep of a token
    itemsize: int

    @property
    def reading(self) -> int:
        """Bytes for each token that is read at once, its logits included."""
        return 2 * self.layer + self.vocabulary * self.itemsize

    @property
    def measuring(self) -> int:
        """Bytes for each token that is measured at once, what is measured left out."""
        return self.layers * self.itemsize * (4 * self.hidden + self.widest)

    @property
    def layer(self) -> int:
        """Bytes of the activations of one layer, for each token."""
        return self.itemsize * (6 * self.hidden + 4 * self.widest)


def sizes_of(model: nn.Module) -> Sizes:
    base, embeddings = find_anatomy(model).base, input_embeddings(model)
    own = getattr(embeddings, "weight", None)
    matrices = [each for each in base.parameters() if each.dim() > 1 and each is not own]
    hidden = own.shape[-1] if own is not None else max((each.shape[-1] for each in matrices), default=1)
    widest = max((each.shape[-2] for each in matrices), default=4 * hidden)
    itemsize = next((each.element_size() for each in base.parameters()), 4)
    layers, heads = len(find_anatomy(model).parts), query_heads(model) or 1
    kept = 2 * layers * (key_value_heads(model) or heads) * (head_width(model) or hidden // heads)
    return Sizes(hidden, widest, vocabulary_size(model), layers, kept, itemsize)


def available_memory(device: torch.device) -> int:
    """Bytes that can be taken on a device now without taking them from others."""
    if device.type == "cuda":
        spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + int(spare)
    if device.type != "cpu":
        return sys.maxsize
    found = [int(psutil.virtual_memory().available)]
    with suppress(OSError, ValueError):  # of a container; no number without a limit
        most, used = (int(Path(file).read_text()) for file in GROUPS[:2])
        told = dict(line.split() for line in Path(GROUPS[2]).read_text().splitlines())
        found.append(most - used + int(told.get("inactive_file", 0)))
    if os.name == "posix":
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            found.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(found))


def check_memory(need: int, device: torch.device, what: str, advice: str) -> None:
    """Raise SinkscopeError where something needs more bytes than a device has left."""
    left = available_memory(device)
    if need > left:
        raise SinkscopeError(
            f"{what} takes about {shown_bytes(need)} beside the weights, and {shown_bytes(left)} are free on "
            f"{device.type}; {advice}.",
            page="Big models",
        )


def fitting_rows(rows: int, fixed: int, each: int, most: int | None, model: nn.Module, what: str, advice: str) -> int:
    """As many rows, `rows` at most, as a budget holds: `fixed` bytes and `each` for a row.

    Args:
        most: the budget in bytes; where None all rows have to fit into what is free now.
        what, advice: what takes the memory, and what to do, for the error.

    Raises:
        SinkscopeError: not one row fits.
    """
    if most is None:
        check_memory(fixed + rows * each, reading_device(model), what, advice)
        return rows
    fits = (most - fixed) // max(1, each)
    if fits < 1:
        raise SinkscopeError(
            f"{what} takes about {shown_bytes(fixed + each)} at least beside the weights, and max_memory is "
            f"{shown_bytes(most)}; give more, shorter texts, or a smaller cache.",
            page="Big models",
        )
    return min(rows, fits)


def shown_bytes(count: int) -> str:
    """A number of bytes as "1.5 GB"."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,} bytes"

"""Files of tensors with a checksum over all they hold, and checkpoints of a long run: what was scored so far and the
state to read on from, to the bit."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sinkscope.errors import SinkscopeError
from sinkscope.files import check_writable, replacing
from sinkscope.models.identity import difference

HEADER = 16 * 2**20  # bytes of a header at most: it names tensors and settings
CHECKPOINT = "sinkscope checkpoint 2"


def write_tensors(path: Path, what: str, kind: str, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write tensors and texts about them; an older file is replaced in one step.

    Raises:
        SinkscopeError: the folder cannot be written, or the disk is full; an older file stays as it was.
    """
    stored = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    told = about | {"kind": kind}
    with replacing(path, what) as partial:
        try:
            save_file(stored, partial, metadata=told | {"checksum": _checksum(stored, told)})
        except SafetensorError as problem:  # how it reports a full disk
            raise OSError(str(problem)) from problem
        with partial.open("rb") as file:
            os.fsync(file.fileno())


def read_tensors(path: Path, what: str, kind: str, advice: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and texts of a file that `write_tensors` wrote, of the same kind.

    Raises:
        SinkscopeError: another kind of file, one of another release, or a damaged one.
    """
    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > HEADER:
            raise ValueError(f"its header would take {header:,} bytes")
        with safe_open(path, framework="pt") as stored:
            about = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as problem:
        raise SinkscopeError(f"{what} {path} is damaged or torn ({problem}); {advice}.") from problem
    checksum = about.pop("checksum", None)
    if checksum is None:
        raise SinkscopeError(f"{path} is a safetensors file, but not one that sinkscope wrote; {advice}.")
    if len(checksum) == 8:  # which covered the tensors alone
        raise SinkscopeError(f"{what} {path} is of an earlier release, which cannot be checked as a whole; {advice}.")
    if checksum != _checksum(tensors, about):
        raise SinkscopeError(f"{what} {path} is damaged: it is not what was saved; {advice}.")
    if about["kind"] != kind:
        raise SinkscopeError(f"{path} is a {about['kind']}, and {what} is looked for ({kind}); {advice}.")
    return tensors, about


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """SHA-256 of all that a file holds: its texts, and name, type, shape and bits of each tensor."""
    digest = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


SECONDS = 15.0  # between two checkpoints: a run that is killed loses no more


@dataclass
class Progress:
    """How far a run under one policy is."""

    losses: Tensor  # [sequence, token] float32, nats, NaN where not scored yet
    batch: int = 0  # the batch being read; as many as there are when all is done
    done: int = 0  # how far its reader is
    seconds: float = 0.0
    state: dict[str, Tensor] = field(default_factory=dict)  # what its reader needs to read on


class Checkpoint:
    """One file that holds the progress of a run, or none; a file of other `settings` is refused."""

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, {name: str(value) for name, value in settings.items()}
        self._written = time.monotonic()

    @property
    def told(self) -> str | None:
        """What is kept of a run that is interrupted, in a sentence; None where nothing is."""
        if self.path is None:
            return None
        return (
            f"interrupted; what was done is kept in {self.path.parent}, and running the same again goes on from there."
        )

    def due(self) -> bool:
        """Whether it is time to write again."""
        return self.path is not None and time.monotonic() - self._written > SECONDS

    def write(self, progress: Progress) -> None:
        """Replace the file, as `write_tensors` does."""
        if self.path is None:
            return
        numbers = {"batch": progress.batch, "done": progress.done, "seconds": progress.seconds}
        tensors = {"losses": progress.losses} | {f"state.{name}": held for name, held in progress.state.items()}
        about = {"settings": json.dumps(self.settings), "progress": json.dumps(numbers)}
        write_tensors(self.path, "the checkpoint", CHECKPOINT, tensors, about)
        self._written = time.monotonic()

    def read(self, batches: Sequence[Tensor]) -> Progress | None:
        """What an earlier run over these batches [sequence, token] left, or None.

        Raises:
            SinkscopeError: the file is damaged or of other settings, or the folder cannot be written.
        """
        if self.path is None:
            return None
        check_writable(self.path.parent, "a checkpoint")  # better refused now than after an hour
        if not self.path.exists():
            return None
        advice = "delete it to start this policy again"
        tensors, about = read_tensors(self.path, "the checkpoint", CHECKPOINT, advice)
        if other := difference(json.loads(about["settings"]), self.settings):
            raise SinkscopeError(
                f"the checkpoint {self.path} was made with something else: {other}; go on with what it was, or give "
                "another folder."
            )
        numbers, losses = json.loads(about["progress"]), tensors.pop("losses")
        now = Progress(losses, state={name.removeprefix("state."): held for name, held in tensors.items()}, **numbers)
        if not _is_possible(now, batches):
            raise SinkscopeError(f"the checkpoint {self.path} says it is where no run can be: {numbers}; {advice}.")
        return now


def _is_possible(now: Progress, batches: Sequence[Tensor]) -> bool:
    """Whether a run over these batches can be there."""
    sizes = sum(map(len, batches)), max(batch.shape[1] for batch in batches)
    if now.losses.shape != sizes or now.losses.dtype != torch.float32:
        return False
    if type(now.batch) is not int or type(now.done) is not int or not 0 <= now.batch <= len(batches):
        return False
    longest = batches[now.batch].shape[1] if now.batch < len(batches) else 0
    return 0 <= now.done <= longest and type(now.seconds) is float and 0 <= now.seconds < math.inf

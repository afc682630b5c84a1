"""Measurements of each batch of texts in a file of its own: a measuring that is stopped goes on behind the last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sinkscope.definition import check_resumable, definition
from sinkscope.errors import SinkscopeError
from sinkscope.files import writable_folder
from sinkscope.models.identity import difference, identity
from sinkscope.scope.collect import Staged, Text
from sinkscope.scope.scope import Scope
from sinkscope.tensors import read_tensors, write_tensors

KIND, WHAT, ADVICE = "sinkscope measurements 2", "the measurements", "delete it to measure these texts again"


class KeptBatches:
    """What a scope measures of batches of texts [sequence, token], kept in a folder.

    The name of a file is a hash of all that its numbers depend on: the identity of the model, the probes, the policy,
    the stream and the texts. So texts that are added later, or measured in another order, find what is there.

    Raises:
        SinkscopeError: the folder cannot be written, or what is measured cannot be told from other things.
    """

    def __init__(self, folder: str | os.PathLike[str], scope: Scope) -> None:
        self.folder = writable_folder(folder, "measurements")
        probes = {f"probe {type(probe).__name__}": definition(probe) for probe in scope.probes}
        policy = {"policy": repr(scope.policy), "policy_definition": scope.policy.definition or ""}
        self.settings = {"stream": scope.stream} | policy | probes | identity(scope.model)
        check_resumable(self.settings, "measurements cannot be kept and resumed")
        self._by_sequence = any(probe.by_sequence for probe in scope.probes)

    @property
    def told(self) -> str:
        """What is kept when measuring is interrupted, in a sentence."""
        return f"interrupted; what was done is kept in {self.folder}, and running the same again goes on from there."

    def _settings(self, batch: Tensor, first: int) -> dict[str, str]:
        """What the numbers of a batch depend on, whose first text is the one of this number in the record."""
        shape = f"{len(batch)} of {batch.shape[1]} tokens"
        place = {"first": str(first)} if self._by_sequence else {}
        text = hashlib.sha256(batch.numpy().tobytes()).hexdigest()
        return self.settings | place | {"form": KIND, "texts": shape, "text": text}

    def _path(self, settings: Mapping[str, str]) -> Path:
        told = json.dumps(settings, sort_keys=True)
        return self.folder / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.safetensors"

    def begin(self, scope: Scope) -> None:
        """A batch is measured now."""
        scope._collector.committed = []

    def write(self, scope: Scope, batch: Tensor) -> None:
        """Keep what was measured of a batch since it began."""
        collector = scope._collector
        measured, collector.committed = collector.committed or [], None
        texts = collector.texts[-len(batch) :]
        places = {id(text): place for place, text in enumerate(texts)}
        tensors = {f"{at}.values": np.stack(staged.values) for at, (_, staged) in enumerate(measured)}
        tensors |= {f"text.{at}.ids": np.concatenate(text.token_ids) for at, text in enumerate(texts)}
        tensors |= {
            f"text.{at}.seen.{start}": seen for at, text in enumerate(texts) for start, seen in text.seen.items()
        }
        about = {
            "measured": [
                {
                    "name": name,
                    "layers": staged.layers,
                    "texts": [places[id(text)] for text in staged.texts],
                    "coords": {dim: [str(at.dtype), at.tolist()] for dim, at in staged.coords.items()},
                }
                for name, staged in measured
            ],
            "texts": [[text.start, text.tokens, text.keys] for text in texts],
            "scope": [scope._causal, scope._other_keys, scope.own_mask],
            "attending": sorted(collector.attending),
        }
        settings = self._settings(batch, len(collector.texts) - len(batch))
        told = {"settings": json.dumps(settings), "about": json.dumps(about)}
        held = {name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in tensors.items()}
        write_tensors(self._path(settings), WHAT, KIND, held, told)

    def read(self, scope: Scope, batch: Tensor) -> bool:
        """Put what was measured of a batch into a scope as if it were measured now; whether there is anything.

        Raises:
            SinkscopeError: the file is damaged, or of other settings than its name says.
        """
        settings = self._settings(batch, len(scope._collector.texts))
        path = self._path(settings)
        if not path.exists():
            return False
        tensors, told = read_tensors(path, WHAT, KIND, ADVICE)
        if other := difference(json.loads(told["settings"]), settings):
            raise SinkscopeError(f"{WHAT} {path} are of other settings than its name says ({other}); {ADVICE}.")
        arrays, about = {name: each.numpy() for name, each in tensors.items()}, json.loads(told["about"])
        texts = [
            Text(start, [arrays[f"text.{at}.ids"]], tokens, _seen(arrays, f"text.{at}.seen."), keys)
            for at, (start, tokens, keys) in enumerate(about["texts"])
        ]
        collector = scope._collector
        collector.discard()
        measured = []
        for at, each in enumerate(about["measured"]):
            coords = {dim: np.asarray(values, dtype=kind) for dim, (kind, values) in each["coords"].items()}
            values, own = list(arrays[f"{at}.values"]), [texts[place] for place in each["texts"]]
            measured.append((each["name"], Staged(coords, own, each["layers"], [], values)))
        collector.stage(measured, about["attending"])
        collector.check()
        collector.commit(texts)
        scope._causal, scope._other_keys, scope.own_mask = about["scope"]
        return True


def _seen(arrays: Mapping[str, Any], prefix: str) -> dict[int, np.ndarray]:
    return {int(name[len(prefix) :]): seen for name, seen in arrays.items() if name.startswith(prefix)}

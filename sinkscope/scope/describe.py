"""What is said in a record beside its numbers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from sinkscope.hf.images import Grid
from sinkscope.hf.models import placeholder_ids
from sinkscope.models.facts import find_streams, model_attributes, token_attributes
from sinkscope.scope.declarations import placed

if TYPE_CHECKING:
    from sinkscope.scope.scope import Scope


def described(
    record: xr.Dataset, scope: Scope, attending: Collection[int], other_keys: int, grids: Sequence[Grid] = ()
) -> xr.Dataset:
    """A record with the units of its variables, and with what was measured how.

    Args:
        record: as collected.
        scope: which collected it.
        attending: the layers whose attention was seen.
        other_keys: keys that are no tokens, at most in one layer.
        grids: of the images that were read, in their order; none where that is not known.
    """
    for probe in scope.probes:
        record = record.assign_coords(placed(probe, record.sizes))
        of_tokens = probe.token_coordinates(record["length"].values.tolist())
        record = record.assign_coords({name: (("sequence", "token"), each) for name, each in of_tokens.items()})
        for name in probe.makes.keys() & set(record.data_vars):
            about = probe.makes[name]
            record[name].attrs |= {
                "units": about.units,
                "long_name": about.description,
                "probe": repr(probe),
                "dims": " ".join(map(str, record[name].dims)),
            }
    if marks := placeholder_ids(scope.model) if "token_id" in record.coords else []:
        record = record.assign_coords(is_image=record.token_id.isin(marks))
        record = record.assign_coords(_places(record["is_image"], grids))
    record.attrs = {
        **({"stream": scope.stream} if len(find_streams(scope.model)) > 1 else {}),
        **model_attributes(scope.model),
        **token_attributes(record, scope.model),
        "attention": "attention interface" if scope.anatomy.interface else "watched softmax",
        "causal": int(scope.causal),
        "normaliser": "the model's own" if scope.normaliser is None else repr(scope.normaliser),
        "policy": repr(scope.policy),
        "probes": ", ".join(map(repr, scope.probes)),
    }
    numbers = [number for _, number in scope.anatomy.around.values() if number is not None]
    if others := [number for number in numbers if number not in attending]:
        record.attrs["layers_without_attention"] = ", ".join(map(str, others))
    if other_keys:  # they take attention as a learned sink does
        record.attrs["keys_that_are_no_tokens"] = other_keys
    return record


def _places(is_image: xr.DataArray, grids: Sequence[Grid]) -> dict[str, Any]:
    """Which image of its text each token stands for, and where in it: coordinates [sequence, token], -1 for none.

    `image` counts images, or frames of a video: tokens of images in a row. `image_row` and `image_column` are there
    where the grids are those of all of them, and have as many tokens.
    """
    marks = is_image.transpose("sequence", "token").values
    runs = [(sequence, *run) for sequence, each in enumerate(marks) for run in _runs(each)]
    if not runs:
        return {}
    placed = _frames(runs, grids)
    found = {name: np.full(marks.shape, -1) for name in ("image", "image_row", "image_column")}
    for sequence, start, *size in [(*run[:2], 1, run[2]) for run in runs] if placed is None else placed:
        cells = slice(start, start + size[0] * size[1])
        found["image"][sequence, cells] = found["image"][sequence].max() + 1
        found["image_row"][sequence, cells], found["image_column"][sequence, cells] = np.indices(size).reshape(2, -1)
    known = ["image"] if placed is None else found
    return {name: (("sequence", "token"), found[name]) for name in known}


def _runs(marks: np.ndarray) -> list[tuple[int, int]]:
    """First place and number of the marks that stand in a row."""
    edges = np.flatnonzero(np.diff(marks.astype(int), prepend=0, append=0))
    return [(int(start), int(stop - start)) for start, stop in edges.reshape(-1, 2)]


def _frames(runs: list[tuple[int, int, int]], grids: Sequence[Grid]) -> list[tuple[int, int, int, int]] | None:
    """Sequence, first token, rows and columns of each image or frame; None where tokens and grids do not fit."""
    left, found = list(runs), []
    for grid in grids:
        missing = grid.frames
        while missing:
            if not left:
                return None
            sequence, start, count = left.pop(0)
            whole = missing * grid.rows * grid.columns
            together = missing if grid.merged and count * grid.merged**2 == whole else 1  # or each frame on its own
            size = grid.tokens(count // together)
            if size is None:
                return None
            found += [(sequence, start + frame * size[0] * size[1], *size) for frame in range(together)]
            missing -= together
    return None if left or not found else found

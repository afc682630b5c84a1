"""Attention to an image, over the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from sinkscope.analysis.images import image_grid as grid_of
from sinkscope.analysis.reading import reads
from sinkscope.arguments import head_pairs
from sinkscope.errors import SinkscopeError
from sinkscope.figures import marks as m
from sinkscope.figures.matplotlib_renderer import figure
from sinkscope.figures.requirements import need
from sinkscope.figures.style import number

SHOWN = 3  # heads beside the mean
MOST = 5


@figure
@reads
def image_grid(
    record: xr.Dataset,
    heads: Sequence[tuple[int, int]] | None = None,
    sequence: int = 0,
    image: int = 0,
    picture: Any = None,
) -> m.Drawing:
    """Attention alpha that each token of an image receives, as a grid over the picture: the mean, and chosen heads.

    >>> figures.image_grid(record).savefig("image_grid.pdf")

    Args:
        record: with what `Received` makes, of a model that read images.
        heads: pairs (layer, head), at most five; those that look most at the image when None.
        sequence, image: which text, and which of its images or frames, from 0.
        picture: what lies below, [y, x] or [y, x, colour], as an array or what becomes one; that of the record when
            None, and nothing where it has none.
    """
    record = need(record, "image_grid", "received")
    grid = grid_of(record, sequence, image)
    total = grid.sum(["image_row", "image_column"], min_count=1)
    if heads is None:
        order = np.argsort(-total.fillna(-1.0).values, axis=None, kind="stable")[:SHOWN]
        places = [np.unravel_index(place, total.shape) for place in order]
        heads = [(int(grid["layer"][layer]), int(grid["head"][head])) for layer, head in places]
    heads = head_pairs(heads, MOST)
    for layer, head in heads:
        if layer not in grid["layer"] or head not in grid["head"]:
            raise SinkscopeError(f"layer {layer}, head {head} is not in this record.")
    below, null = _grey(record, sequence, image, picture), number(grid.attrs["null"])
    parts = [("mean over layers and heads", grid.mean(["layer", "head"]))]
    parts += [(f"layer {layer}, head {head}", grid.sel(layer=layer, head=head)) for layer, head in heads]
    panels = []
    for column, (title, cells) in enumerate(parts):
        high = float(cells.max())
        bar = m.ColourBar(f"α (null {null})", low=0, high=high if high > 0 else 1.0, place="below", small=True)
        hover = f"row {{y}}, column {{x}}\n{title}\nα {{z:.4~g}}"
        mark = m.Image(cells, bar, square=True, hover=hover, picture=below)
        rows, columns = ([0, size - 1] if size > 1 else [0] for size in cells.shape)
        x, y = m.Axis("column of tokens", ticks=columns), m.Axis("" if column else "row of tokens", ticks=rows)
        panels.append(m.Panel([mark], x, y, title, has_frame=True))
    width = m.PAGE / max(len(parts), 3)
    return m.Drawing(panels, record.attrs, width * len(parts), width + 0.9, columns=len(parts), page_height=420)


def _grey(record: xr.Dataset, sequence: int, image: int, picture: Any) -> np.ndarray | None:
    """[y, x] of a picture in 0..1."""
    if picture is None:
        if "picture" not in record or image >= record.sizes["image_number"]:
            return None
        kept = record["picture"].isel(sequence=sequence, image_number=image).values
        return kept if np.isfinite(kept).all() else None
    try:
        values = np.asarray(picture, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SinkscopeError(f"picture is a {type(picture).__name__}, which is no array [y, x] of numbers.") from error
    if values.ndim not in (2, 3) or not values.size:
        raise SinkscopeError(f"picture has the shape {values.shape}; give an array [y, x] or [y, x, colour].")
    grey = values if values.ndim == 2 else values[..., :3].mean(-1)
    low, high = grey.min(), grey.max()
    return (grey - low) / (high - low if high > low else 1.0)

"""Attention between spans of a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from sinkscope.analysis.reading import reads
from sinkscope.analysis.spans import span_mass as masses_of
from sinkscope.arguments import head_pairs
from sinkscope.errors import SinkscopeError
from sinkscope.figures import marks as m
from sinkscope.figures.matplotlib_renderer import figure
from sinkscope.figures.requirements import need
from sinkscope.figures.style import drawable

MOST = 24  # spans whose names can be read
MOST_HEADS = 2


@figure
@reads
def span_mass(record: xr.Dataset, heads: Sequence[tuple[int, int]] | None = None) -> m.Drawing:
    """Attention from each span of a text (rows) to each (columns): the mean of all heads, chosen ones, and the null.

    >>> figures.span_mass(record).savefig("span_mass.pdf")

    Args:
        record: with what `SpanMass` makes, of up to 24 spans.
        heads: pairs (layer, head), at most two, beside the mean; the one that differs most from the null when None.
    """
    record = need(record, "span_mass", "span_mass")
    mass = masses_of(record)
    names = mass["query_span"].values.tolist()
    if len(names) > MOST:
        raise SinkscopeError(f"{len(names)} spans are too many for a figure, which shows {MOST}; take span_table.")
    if heads is None:
        apart = abs(mass - mass["null"]).mean(["query_span", "key_span"]).fillna(-1.0)
        best = np.unravel_index(int(np.argmax(apart.values)), apart.shape)
        heads = [(int(mass["layer"][best[0]]), int(mass["head"][best[1]]))]
    heads = head_pairs(heads, MOST_HEADS)
    for layer, head in heads:
        if layer not in mass["layer"] or head not in mass["head"]:
            raise SinkscopeError(f"layer {layer}, head {head} is not in this record.")
    parts = [("mean over layers and heads", mass.mean(["layer", "head"]))]
    parts += [(f"layer {layer}, head {head}", mass.sel(layer=layer, head=head)) for layer, head in heads]
    parts.append(("uniform null", mass["null"]))
    ticks, words = list(range(len(names))), [drawable(name, limit=14) for name in names]
    bar = m.ColourBar("mean attention (probability)", "probability", 0, 1, place="below", small=True)
    panels = []
    for column, (title, cells) in enumerate(parts):
        mark = m.Image(
            cells.transpose("query_span", "key_span"), bar, square=True, digits=2 if len(names) < 8 else None,
            hover=f"from span {{y}} to span {{x}}\n{title} {{z:.4~g}}",
        )  # fmt: skip
        x = m.Axis("to the keys of", ticks=ticks, names=words)
        y = m.Axis("" if column else "from the queries of", ticks=ticks, names=[""] * len(names) if column else words)
        panels.append(m.Panel([mark], x, y, title, has_frame=True))
    width = m.PAGE / 3
    return m.Drawing(panels, record.attrs, width * len(parts), width + 1.1, columns=len(parts), page_height=440)

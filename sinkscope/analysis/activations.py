"""Massive activations (Sun et al. 2024, "Massive activations in large language models")."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.token_texts import text_of
from sinkscope.analysis.variables import variable, whole
from sinkscope.arguments import finite_number

COLUMNS = ("sequence", "layer", "position", "token_text", "dimension", "magnitude", "times_median")


def massive_activations(record: xr.Dataset, magnitude: float = 100, ratio: float = 1000) -> pd.DataFrame:
    """The tokens whose largest hidden-state entry is above `magnitude` and at least `ratio` times the layer's
    median magnitude.

    One row per (sequence, layer, position): token_text ("" if unknown), dimension (-1 if not measured),
    magnitude, times_median; ordered by sequence, layer and position. Only each token's largest entry was
    recorded, so a second massive dimension of a token does not show. attrs hold what was computed and the
    record's provenance.
    Raises SinkscopeError if the record has no hidden-state extremes, or a threshold is not above zero.
    """
    magnitude, ratio = finite_number(magnitude, "magnitude", 0.0), finite_number(ratio, "ratio", 0.0)
    record = whole(record)
    order = ("sequence", "layer", "token")
    largest = variable(record, "activation_max").transpose(*order)
    median = variable(record, "activation_median").transpose(*order)
    values, medians = largest.values.astype(np.float64), median.values.astype(np.float64)
    massive = (values > magnitude) & (values >= ratio * medians)
    where = np.argwhere(massive)
    dimension = (
        variable(record, "activation_dimension").transpose(*order).values if "activation_dimension" in record else None
    )
    with np.errstate(divide="ignore"):
        times = values[massive] / medians[massive]
    table = pd.DataFrame(
        {
            "sequence": largest["sequence"].values[where[:, 0]].astype(np.int64),
            "layer": largest["layer"].values[where[:, 1]].astype(np.int64),
            "position": largest["token"].values[where[:, 2]].astype(np.int64),
            "token_text": [text_of(record, s, p) for s, p in where[:, [0, 2]]],
            "dimension": dimension[massive].astype(np.int64) if dimension is not None else np.full(len(where), -1),
            "magnitude": values[massive],
            "times_median": times,
        },
        columns=list(COLUMNS),
    )
    table.attrs = {
        **record.attrs,
        "computed": f"largest magnitude above {magnitude:g} and at least {ratio:g} times the layer's median "
        "(Sun et al. 2024)",
        "magnitude": magnitude,
        "ratio": ratio,
    }
    return table

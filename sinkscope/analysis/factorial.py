"""The collapse of window attention as the two-by-two design it is: with and without a sink's place in the denominator,
with and without its value.

Full sinks have both, phantoms (values zeroed) the denominator alone, values only the value alone, the window neither.
What one half closes of the gap in mean loss depends on whether the other is there, so that either is told first *and*
last; the interaction is what neither does alone, and Shapley's shares (1953) are the mean over both orders.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.perplexity import decomposed, losses, units_of
from sinkscope.analysis.reading import reads
from sinkscope.errors import SinkscopeError

CELLS = ("full sinks", "phantom, values zeroed", "values only", "window")
"""Both halves, the denominator alone, the value alone, neither."""

# weights of the mean losses of those four, over the gap between the last and the first
EFFECTS = {
    "denominator, first": (0, -1, 0, 1),
    "denominator, after the value": (-1, 0, 1, 0),
    "value, first": (0, 0, -1, 1),
    "value, after the denominator": (-1, 1, 0, 0),
    "interaction": (-1, 1, 1, -1),
    "denominator, Shapley": (-0.5, -0.5, 0.5, 0.5),
    "value, Shapley": (-0.5, 0.5, -0.5, 0.5),
}


@reads
def factorial_table(curve: xr.Dataset, over: str | None = None) -> pd.DataFrame:
    """Shares of the collapse by half of a sink, and their interaction: effect, share, low, high.

    effect      "denominator, first" is what phantoms close of the gap in mean loss between window and full sinks, and
                "denominator, after the value" what is left to close beside the values; both of "value" too;
                "interaction" is 1 less both first ones; "Shapley" the mean over the two orders
    share       of the gap: the two orders each add up to 1, and so do Shapley's
    low, high   95% interval (Fieller 1954), paired, over the same texts or batches as in `ppl_table`; NaN where the gap
                could be zero

    >>> sinkscope.factorial_table(record).effect.tolist()[:3]
    ['denominator, first', 'denominator, after the value', 'value, first']

    Args:
        curve: of `sinkscope.decompose`.
        over: "texts" or "batches", as in `ppl_table`.

    Raises:
        SinkscopeError: as `collapse_table`, or one of the four is missing.
    """
    late, named = decomposed(curve)
    policies = {part: name for name, part in named.items()}
    if missing := [cell for cell in CELLS if cell not in policies]:
        raise SinkscopeError(f"the record has no policy that is {missing[0]}: make one with sinkscope.decompose.")
    late = late.sel(policy=[policies[cell] for cell in CELLS])
    units, weights = units_of(losses(late), over), np.array(list(EFFECTS.values()))
    gap = units.of(lambda mean: mean[..., [3]] - mean[..., [0]])
    found = units.of_share(
        lambda mean: mean @ weights.T, lambda mean: mean @ np.array(len(weights) * [[-1, 0, 0, 1]]).T
    )
    table = pd.DataFrame({"effect": list(EFFECTS), "share": found.mean, "low": found.low, "high": found.high})
    if not gap.mean[0] > 0 or gap.low[0] <= 0:
        table[["share", "low", "high"]] = np.nan
    table.attrs = {**curve.attrs, "bounds": units.said, "over": units.over, "units": units.count}
    return table

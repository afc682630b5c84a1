"""What a record of `bigram_backcopy` says, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.errors import SinkscopeError

CONFIDENCE = 0.95
FEWEST_SEEDS = 3
BASELINE = "softmax"


def emergence_quantities(record: xr.Dataset) -> dict[str, xr.DataArray]:
    """What is told of a record, by name: each [arm, seed, step], those of a layer [.., layer]; means over heads.

    Raises:
        SinkscopeError: a record of something else.
    """
    if record.attrs.get("kind") != "emergence":
        raise SinkscopeError("this is not a record of emergence: make one with sinkscope.lab.bigram_backcopy.")
    heads = record.mean("head", keep_attrs=True)
    trigger, other = heads.sel(tokens="trigger", drop=True), heads.sel(tokens="non-trigger", drop=True)
    # a mean of norms over heads would let the largest head speak for all: ratios first
    ratio = (record["bos_value_norm"] / record["value_norm"]).mean("head")
    return {
        "loss": record["loss"].sel(tokens="all", drop=True),
        "loss after triggers": trigger["loss"],
        "loss after non-triggers": other["loss"],
        "BOS mass of non-triggers": other["bos_mass"],
        "BOS mass of triggers": trigger["bos_mass"],
        "previous-token mass of triggers": trigger["previous_mass"],
        "row sum of non-triggers": other["row_sum"],
        "row sum of triggers": trigger["row_sum"],
        "value norm of BOS / of others": ratio,
        "hidden norm of BOS / of others": record["bos_hidden_norm"] / record["hidden_norm"],
    }


def emergence_table(record: xr.Dataset, step: int | None = None) -> pd.DataFrame:
    """Where each arm stands after some step: means over seeds, with intervals.

    Args:
        record: of `bigram_backcopy`.
        step: one that was measured; the last when None.

    Returns:
        One row for each arm, quantity and layer (no layer for losses):

        arm, quantity, layer, seeds                     seeds: how many
        mean, low, high                                 over seeds, with its 95% t interval
        difference, difference_low, difference_high     to softmax, or else the first arm, seed by seed: runs of one
                                                        seed share their first weights and sequences

        Fewer than three seeds give no intervals (NaN), which attrs["intervals"] says.

    Raises:
        SinkscopeError: a record of something else, or a step that was not measured.
    """
    quantities = emergence_quantities(record)
    measured = record["step"].values.tolist()
    step = measured[-1] if step is None else step
    if step not in measured:
        raise SinkscopeError(f"step={step!r} was not measured: give one of {', '.join(map(str, measured))}.")
    arms = [str(arm) for arm in record["arm"].values]
    baseline = BASELINE if BASELINE in arms else arms[0]
    rows = []
    for name, quantity in quantities.items():
        for layer, values in _by_layer(quantity.sel(step=step)):
            for arm in arms:
                own = values.sel(arm=arm).values
                difference = own - values.sel(arm=baseline).values
                rows.append(
                    (arm, name, layer, len(own), *map(float, t_interval(own)), *map(float, t_interval(difference)))
                )
    columns = ["arm", "quantity", "layer", "seeds", "mean", "low", "high"]
    table = pd.DataFrame(rows, columns=[*columns, "difference", "difference_low", "difference_high"])
    table["layer"] = table["layer"].astype("Int64")
    table.loc[table["arm"] == baseline, ["difference", "difference_low", "difference_high"]] = np.nan
    table.attrs = record.attrs | {
        "step": step,
        "baseline": baseline,
        "confidence": CONFIDENCE,
        "best_loss_after_non_triggers": float(record["best_loss"].sel(tokens="non-trigger")),
        "bos_null": float(record["bos_null"].sel(tokens="non-trigger").isel(arm=0)),
        "intervals": intervals_said(record.sizes["seed"]),
    }
    return table


def emergence_summary(table: pd.DataFrame) -> pd.DataFrame:
    """The table for a page: one row for each arm and layer, one column for each quantity, "mean (low to high)"."""
    shown = table.assign(cell=[_cell(*row) for row in table[["mean", "low", "high"]].itertuples(index=False)])
    layers = sorted(table["layer"].dropna().unique())
    pieces = [
        shown[shown["layer"].isna() | (shown["layer"] == layer)]
        .pivot(index="arm", columns="quantity", values="cell")
        .reindex(index=table["arm"].unique(), columns=table["quantity"].unique())
        .assign(layer=layer)
        for layer in layers
    ]
    whole = pd.concat(pieces).reset_index().rename_axis(columns=None)
    if len(layers) == 1:
        return whole.drop(columns="layer")
    return whole[["arm", "layer", *whole.columns.drop(["arm", "layer"])]]


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the first axis and Student's interval ``mean -+ t * s / sqrt(n)``; NaN bounds below three values."""
    from scipy.special import stdtrit

    values = np.asarray(values, dtype=np.float64)
    count, mean = len(values), values.mean(0)
    if count < FEWEST_SEEDS:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = stdtrit(count - 1, (1 + CONFIDENCE) / 2) * values.std(0, ddof=1) / count**0.5
    return mean, mean - half, mean + half


def intervals_said(seeds: int) -> str:
    """What to say of the intervals over so many seeds."""
    if seeds < FEWEST_SEEDS:
        return f"no intervals: {seeds} seed{'s' * (seeds > 1)}, and {FEWEST_SEEDS} or more are needed"
    return f"{CONFIDENCE:.0%} t intervals over {seeds} seeds"


def _by_layer(quantity: xr.DataArray) -> Iterator[tuple[int | None, xr.DataArray]]:
    if "layer" not in quantity.dims:
        yield None, quantity
    else:
        for layer in quantity["layer"].values:
            yield int(layer), quantity.sel(layer=layer)


def _cell(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f}" if np.isnan(low) else f"{mean:.3f} ({low:.3f} to {high:.3f})"

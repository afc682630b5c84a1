"""From the losses of an ablation to its table: the same tokens in all rows, with paired intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.perplexity import LOSSES, losses_from, ppl_table
from sinkscope.analysis.reading import reads
from sinkscope.arguments import MOST_RESAMPLES, whole_number
from sinkscope.errors import SinkscopeError
from sinkscope.record import first_evicted

LEVELS = ("sinks", "cache_size", "positions", "kind")


def ablate(
    model: Any,
    ids: Any,
    sinks: Any = (0, 1, 2, 4, 8),
    cache_size: Any = 1024,
    positions: Any = "cache",
    kinds: Any = "first",
    *,
    seed: int = 0,
    resamples: int = 2000,
    bootstrap_block: int | str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Perplexity of one text for every combination of sinks, cache size, positions and kind, over the same tokens.

    >>> table = sinkscope.ablate(model, ids[:1], sinks=(0, 2), cache_size=16, resamples=50)
    >>> table.sinks.tolist()
    [0, 2]

    Args:
        model, ids: as in `run_ablation`.
        sinks, cache_size, positions, kinds: the factors, as there; one level or several of each.
        seed: of random tokens, and of a bootstrap.
        resamples, bootstrap_block: of a bootstrap, as in `ablation_table`.
        options: policies beside the factors, tokenizer, block, n_jobs, folder, max_memory, progress, and what to note
            in attrs.

    Returns what `ablation_table` does, and raises what `run_ablation` does.
    """
    from sinkscope.experiments.ablation import run_ablation  # not above: reading a record needs no torch

    resamples = whole_number(resamples, "resamples", 1, MOST_RESAMPLES)
    record = run_ablation(model, ids, sinks, cache_size, positions, kinds, seed=seed, **options)
    return ablation_table(record, resamples, seed, bootstrap_block)


@reads
def ablation_table(
    record: xr.Dataset, resamples: int = 2000, seed: int = 0, block: int | str | None = None
) -> pd.DataFrame:
    """One row for each combination of the factors, and one for each policy beside them.

    cell                            number of the run the row shows: without sinks, kind and positions make no
                                    difference; `table.drop_duplicates("cell")` keeps each run once
    policy, policy_kind             name and class of its policy
    sinks, cache_size, positions, kind
                                    the combination; kind is empty for a policy beside the factors, whose cache_size is
                                    -1 where nothing bounds it
    ppl, low, high                  perplexity over the tokens scored, and its 95% interval
    ratio, ratio_low, ratio_high    to the most sinks of the same cache size (the first tokens, positions in the cache,
                                    where there are such cells), or of the largest where a policy beside the factors has
                                    another; and its paired interval
    .._evicted                      ppl, low and high over the tokens from which every bounded cache has evicted some
    seconds                         that the run took

    The first max(sinks) + 1 tokens count in no row, so that the same tokens of the text are scored in all. Intervals
    are those of `ppl_table`, over the same texts or batches for all rows; with a `block`, of its bootstrap.
    Raises SinkscopeError if the record is not one of `run_ablation`.

    >>> record = sinkscope.run_ablation(model, ids[:1], sinks=(0, 2), cache_size=16)
    >>> len(sinkscope.ablation_table(record, resamples=50))
    2
    """
    if record.attrs.get("kind") != "ablation" or "level_cell" not in record.coords:
        raise SinkscopeError("the record is not one of an ablation: make one with sinkscope.run_ablation.")
    levels = pd.DataFrame({name: record[f"level_{name}"].values for name in ("cell", *LEVELS)})
    factors = levels[levels["kind"] != ""]
    late, first = first_evicted(int(levels["cache_size"].max())), int(factors["sinks"].max()) + 1
    evicted = ppl_table(losses_from(record, late), None, block, resamples, seed)
    scored = losses_from(record, first)
    names, tables, baselines = record["policy"].values, {}, []
    for size in factors["cache_size"].unique().tolist():
        most = _baseline(factors[factors["cache_size"] == size])
        baselines.append(f"{most['sinks']} sinks of {size} ({most['kind']}, {most['positions']} positions)")
        tables[size] = ppl_table(scored, str(names[most["cell"]]), block, resamples, seed)
        block = tables[size].attrs.get("block", block)  # the same for all, and so are then the resamples
    largest, about, cells = tables[max(tables)], evicted.attrs, levels["cell"].to_numpy()
    sizes = levels["cache_size"]
    whole = [tables.get(size, largest).loc[cell, LOSSES] for cell, size in zip(cells, sizes, strict=True)]
    table = levels.copy()
    table.insert(1, "policy", [str(names[cell]) for cell in cells])
    table.insert(2, "policy_kind", [str(record["policy_kind"].values[cell]) for cell in cells])
    table[LOSSES] = np.array(whole, dtype=np.float64)
    table[["ppl_evicted", "low_evicted", "high_evicted"]] = evicted[["ppl", "low", "high"]].to_numpy()[cells]
    table["seconds"] = record["seconds"].values[cells]
    table.attrs = record.attrs | {
        "computed": about["computed"],
        "baseline": "; ".join(baselines),
        **{name: about[name] for name in ("bounds", "over")},
        "confidence": about["confidence"],
        "first_scored": first,
        "first_evicted": late,
        "tokens_used": largest.attrs["tokens_used"],
        "tokens_evicted": about["tokens_used"],
    }
    return table


def _baseline(rows: pd.DataFrame) -> dict[str, Any]:
    """The most sinks; the first tokens of the text, at positions in the cache, where these are among the levels."""
    most = rows[rows["sinks"] == rows["sinks"].max()]
    for name, preferred in (("kind", "first"), ("positions", "cache")):
        found = most[most[name] == preferred]
        most = found if len(found) else most[most[name] == most[name].iloc[0]]
    return most.iloc[0].to_dict()

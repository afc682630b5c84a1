"""Several models side by side: how strong their sinks are, and how much they lose without them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.importance import EPSILON, sink_rate, sink_rate_curve
from sinkscope.analysis.intervals import interval
from sinkscope.analysis.mass import sink_mass
from sinkscope.analysis.perplexity import RATIO, losses, losses_from, policy_parts, ppl_table
from sinkscope.analysis.runs import check_same, list_cells, sweep_losses
from sinkscope.analysis.variables import is_causal, prefix, sequence_lengths, variable, whole
from sinkscope.arguments import checks_types, whole_number
from sinkscope.directories import MANIFEST, Manifest
from sinkscope.errors import SinkscopeError, shown
from sinkscope.experiments.run_folder import Card, cell_in, cells_in, read_cell
from sinkscope.record import first_evicted, open_record

Saved = str | os.PathLike[str] | Sequence[Any]
FILES = ("text.nc", "perplexity.nc")
DIFFER = ("cache_size", "sinks", "bos", "sequences", "tokens", "text")


@checks_types
def compare(saved: Iterable[Saved], length: int | None = None, resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """Sink strength beside the collapse of window attention, one row for each model.

    >>> policies = [sinkscope.Dense(), sinkscope.Window(16), sinkscope.SinkWindow(2, 14)]
    >>> losses = sinkscope.perplexity(model, ids, policies)
    >>> table = sinkscope.compare([(record, losses)], resamples=50)

    Args:
        saved: folders of saved reports, or pairs (captured record, perplexity record), each a Dataset or a file; or run
            folders of a sweep with `measure` and `perplexity`, which give a row for each model and text.
        length: tokens of each sequence that count for the sinks; those of the shortest text of all when None.
        resamples, seed: of `interval`.

    model, text                      their names
    sink_rate, sink_mass             share of heads with an importance of the first token above 0.3 (Gu et al. 2024);
                                     mean attention on it
    rate_low, rate_high, rate_null, mass_low, mass_high, mass_null
                                     their intervals, and what they are of uniform attention
    T, sequences, bos                tokens of each sequence of these, how many, and whether each starts with BOS
    collapse, .._low, .._high        perplexity of the window over that of sinks + window, over the same tokens after
                                     the first eviction, with its paired interval
    cache_size, sinks, tokens, read  of both policies; tokens scored, and read in all
    differs                          which of cache_size, sinks, bos, sequences, tokens and text are not those of the
                                     first row; such rows answer another question

    The sink metric falls as T grows and a causal query sees no later token, so all rows are cut to the same T, which
    changes nothing else. The collapse is cut to the tokens that all texts have; with other tokenizers as many tokens
    are not the same words.

    Raises SinkscopeError if there is nothing to compare, a folder is without records, or a record without sink mass or
    losses, without a window or sinks + window of one cache size, or too short.
    """
    if isinstance(saved, (str, os.PathLike)) or not isinstance(saved, Iterable):
        raise SinkscopeError(f"compare takes a list of saved reports, not {saved!r}: put it in brackets.")
    pairs = [pair for each in saved for pair in _opened(each)]
    if not pairs:
        raise SinkscopeError("there is nothing to compare: give folders of saved reports.")
    shortest = min(int(sequence_lengths(record).min()) for record, _, _ in pairs)
    most = min(shortest, whole_number(length, "length", 2)) if length is not None else shortest
    read = min(int(curve.sizes["token"]) for _, curve, _ in pairs)
    rows = [_row(record, curve, where, most, read, resamples, seed) for record, curve, where in pairs]
    for row in rows:
        row["differs"] = ", ".join(name for name in DIFFER if row[name] != rows[0][name])
    table = pd.DataFrame(rows)
    texts = list(dict.fromkeys(table["text"]))
    table.attrs = {
        "model": ", ".join(dict.fromkeys(table["model"])),
        "text": texts[0] if len(texts) == 1 else f"{len(texts)} texts",
        "sinkscope": ", ".join(sorted({str(each.attrs.get("sinkscope", "")) for each, _, _ in pairs})),
        "date": max(str(each.attrs.get("date", "")) for record, curve, _ in pairs for each in (record, curve)),
        "kind": "comparison",
        "epsilon": EPSILON,
        "resamples": resamples,
        "seed": seed,
    }
    return table


def _opened(saved: Saved) -> list[tuple[xr.Dataset, xr.Dataset, str]]:
    """Captured records, their perplexity records, and what to call them in an error."""
    where = "a pair"
    if isinstance(saved, (str, os.PathLike)):
        folder = Path(os.path.expanduser(saved))
        if os.path.isdir(folder / "cells"):
            return _swept(folder)
        here = folder / "records" if os.path.isdir(folder / "records") else folder
        missing = [name for name in FILES if not os.path.isfile(here / name)]
        if len(missing) == len(FILES):
            raise SinkscopeError(
                f"{shown(str(folder))} holds no record of a report: give a folder that `sinkscope report` wrote."
            )
        if missing:
            what = "losses, as one made with --no-streaming" if missing == ["perplexity.nc"] else "sink mass"
            raise SinkscopeError(f"{folder} is a report without {what} ({missing[0]} is not there): make it again.")
        saved, where = [here / name for name in FILES], str(folder)
        if here != folder and (folder / MANIFEST).exists():
            saved = [Manifest(folder).record(f"records/{name}") for name in FILES]
    if isinstance(saved, xr.Dataset) or not isinstance(saved, Sequence) or len(saved) != 2:
        raise SinkscopeError(f"{type(saved).__name__} is no saved report: give a folder, or a pair of records.")
    record, curve = (each if isinstance(each, xr.Dataset) else open_record(each) for each in saved)
    return [(whole(record), curve, where)]


def _swept(folder: Path) -> list[tuple[xr.Dataset, xr.Dataset, str]]:
    """What a sweep measured of each model and text under dense attention, and its losses."""
    cells = list_cells(folder)
    measured = cells[(cells["experiment"] == "measure") & (cells["policy_kind"] == "Dense")]
    if measured.empty:
        raise SinkscopeError(f"{folder} has no `measure` under the policy dense: sweep both it and `perplexity`.")
    cards, found = cells_in(folder), []
    for row in measured.itertuples():
        named, own = {"model": str(row.model), "text": str(row.text)}, cards[str(row.cell)]
        if isinstance(own, SinkscopeError):
            raise own
        for card in cards.values():
            if isinstance(card, Card) and {name: card.about.get(name) for name in named} == named:
                check_same(folder, own, card)
        record = read_cell(cell_in(folder, str(row.cell))).assign_attrs(named)
        found.append((whole(record), sweep_losses(folder, **named), f"{folder} ({row.model}, {row.text})"))
    return found


def _row(
    record: xr.Dataset, curve: xr.Dataset, where: str, length: int, read: int, resamples: int, seed: int
) -> dict[str, Any]:
    variable(record, "sink_mass")
    if not is_causal(record):
        raise SinkscopeError(f"{_name(record)} is an encoder, which has no window to collapse: leave it out.")
    if _name(record) != _name(curve):
        raise SinkscopeError(f"{where} has sinks of {_name(record)} and losses of {_name(curve)}: give one model's.")
    return {
        "model": _name(record),
        **strength(record, length, resamples, seed),
        **collapsed(curve, read),
        "text": str(curve.attrs.get("text", "unknown")),
    }


def strength(record: xr.Dataset, length: int, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """How strong the sinks are over the first `length` tokens, as `compare` has it."""
    record = prefix(whole(record), length)
    rate = sink_rate(record, EPSILON)
    rates = sink_rate_curve(record, [EPSILON], [length]).squeeze()
    mass = sink_mass(record, first=1)
    each = record["sink_mass"].isel(sink=0, query=slice(1, None)).mean(["layer", "head", "query"], dtype=np.float64)
    spread = interval(each, resamples=resamples, seed=seed, at_least=0, at_most=1)
    return {
        "sink_rate": float(rate),
        "rate_low": float(rates["lower"]),
        "rate_high": float(rates["upper"]),
        "rate_null": float(rate.attrs["null_rate"]),
        "sink_mass": float(mass.mean()),
        "mass_low": float(spread["lower"]),
        "mass_high": float(spread["upper"]),
        "mass_null": float(mass.attrs["null"]),
        "T": length,
        "sequences": int(record.sizes["sequence"]),
        "bos": str(record.attrs.get("bos", "unknown")),
    }


def collapsed(curve: xr.Dataset, read: int) -> dict[str, Any]:
    """The collapse as `compare` has it: window against sinks + window, over the tokens up to `read` after the first
    eviction."""
    name, nll = _name(curve), losses(curve)
    parts, sizes = policy_parts(nll), nll["cache_size"].values.tolist()
    windows, full = ([at for at, part in enumerate(parts) if part == each] for each in ("window", "full sinks"))
    pairs = [[window, kept] for window in windows for kept in full if sizes[window] == sizes[kept]]
    if not pairs:
        raise SinkscopeError(f"the losses of {name} have no window and sinks + window of one cache size: measure both.")
    both, size = curve.isel(policy=pairs[0], token=slice(0, read)), sizes[pairs[0][1]]
    late = losses_from(both, first_evicted(size))
    if not bool(late["nll"].notnull().any()):
        raise SinkscopeError(
            f"no token of {name} below {read} comes after the first eviction from a cache of {size}: give longer texts."
        )
    names, sinks = both["policy"].values, both["sinks"].values
    table = ppl_table(late, str(names[1]))
    found = table.iloc[0]
    return {
        **dict(zip(("collapse", "collapse_low", "collapse_high"), map(float, found[RATIO]), strict=True)),
        "cache_size": size,
        "sinks": int(sinks[1]),
        "tokens": int(found["tokens"]),
        "read": both.sizes["token"],
    }


def _name(record: xr.Dataset) -> str:
    return PurePath(str(record.attrs.get("model", "unknown model"))).name or "unknown model"

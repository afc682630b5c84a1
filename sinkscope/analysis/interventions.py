"""Interventions beside their controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import stdtrit

from sinkscope.analysis.batches import Chance, chance_of_draws
from sinkscope.analysis.intervals import FEWEST, interval
from sinkscope.analysis.perplexity import LOSSES, RATIO, losses, ppl_table, units_of
from sinkscope.analysis.reading import reads
from sinkscope.analysis.variables import whole
from sinkscope.arguments import MOST_RESAMPLES, whole_number
from sinkscope.errors import SinkscopeError

BASELINE = "nothing"
MARGIN = 0.02
"""Of perplexity: a ratio whose interval lies within it, and within one over it, is as good as none."""

OVER_CONTROL = ("over_control", "over_control_low", "over_control_high")
RATIO_DRAWS, OVER_DRAWS = (("ratio_draws_low", "ratio_draws_high"), ("over_draws_low", "over_draws_high"))
REMOVED, PER_MASS = "removed_mass", ("per_mass", "per_mass_low", "per_mass_high")
OUTPUT = ("output", "output_low", "output_high")
MASS = ("sink_mass", "mass_low", "mass_high")
COLUMNS = (
    "intervention", "role", *LOSSES, *OVER_CONTROL, "verdict", "draws", *RATIO_DRAWS, *OVER_DRAWS, REMOVED, *PER_MASS,
    *MASS, "tokens",
)  # fmt: skip


def intervene(
    model: Any,
    ids: Any,
    interventions: Any = None,
    *,
    seed: int = 0,
    resamples: int = 2000,
    block: int | str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Loss and sink mass under interventions and their controls, over the same tokens.

    Each draw of what is drawn at random reads all texts once. So 20 draws, the default, of the usual interventions read
    each text 91 times, and `draws=2` reads it 19 times.

    >>> table = sinkscope.intervene(model, ids, [sinkscope.EvictKeys("sinks")], start=16, resamples=50)
    >>> table.role.tolist()
    ['baseline', 'effect', 'control']

    Args:
        model, ids, interventions: as in `run_interventions`.
        seed: of all that is drawn at random.
        resamples, block: as in `intervention_table`.
        options: tokenizer, start, sinks, first, draws, progress, as there, and what to note in attrs.

    Returns what `intervention_table` does, and raises what `run_interventions` does.
    """
    from sinkscope.experiments.interventions import run_interventions  # not above: reading a record needs no torch

    resamples = whole_number(resamples, "resamples", 1, MOST_RESAMPLES)
    record = run_interventions(model, ids, interventions, seed=seed, **options)
    return intervention_table(record, resamples, seed, block)


@reads
def intervention_table(
    record: xr.Dataset, resamples: int = 2000, seed: int = 0, block: int | str | None = None
) -> pd.DataFrame:
    """One row for each intervention and, below it, one for its control; the baseline first.

    intervention, role                  its name; "baseline", "effect" or "control"
    ppl, low, high                      perplexity over the tokens scored, and its 95% interval
    ratio, ratio_low, ratio_high        to the perplexity with no intervention, and its paired interval
    over_control, .._low, .._high       to the perplexity of its control, and its paired interval; NaN for a control
    verdict                             what that interval says: "higher" or "lower" than the control; "equal" to it,
                                        where all of it lies within 2% (attrs["same"]; a plan's `margin` where the
                                        record has one); else "open"; "" without one
    draws                               over which losses are means: the geometric mean of perplexities
    ratio_draws_low, .._high            of a row with draws: interval of the ratio over draws, in these texts
    over_draws_low, .._high             the same of the ratio to a control with draws
    removed_mass                        mean attention on the evicted keys, in the text as it is; NaN where none are
    per_mass, .._low, .._high           logarithm of the ratio for each unit of it, nats, and its interval: over texts
                                        Fieller's; over batches that of the ratio, as their mass is known
    sink_mass, mass_low, mass_high      mean attention on the first keys, over layers, heads and queries from the start
                                        on, and its t interval over texts (NaN with fewer than three)
    tokens                              scored

    Intervals of losses are those of `ppl_table`, over the same texts or batches in all rows; with a `block`, of its
    bootstrap. Each text has draws of its own, so that intervals over texts hold what differs from draw to draw; over
    batches, the error of the mean over draws is added. Intervals over draws, of three or more, are t intervals within
    texts: they say how far other draws would move the mean, and nothing of other texts. An intervention that puts other
    tokens in the place of those scored has a perplexity, but no ratio (NaN).
    Raises SinkscopeError if the record is not one of interventions.

    >>> sinkscope.intervention_table(record, resamples=50).role.tolist()[:3]
    ['baseline', 'effect', 'control']
    """
    if "control" not in record.coords or BASELINE not in record["policy"].values:
        raise SinkscopeError("the record is not one of interventions: make one with sinkscope.run_interventions.")
    names = [str(name) for name in record["policy"].values]
    control_of = dict(zip(names, map(str, record["control"].values), strict=True))
    same = record["same_tokens"].values if "same_tokens" in record.coords else np.ones(len(names))
    comparable = [name for name, each in zip(names, same, strict=True) if each]
    every = ppl_table(record.sel(policy=comparable), BASELINE, block, resamples, seed)
    block, rows = every.attrs.get("block"), every.set_index("policy")
    if others := [name for name in names if name not in comparable]:
        alone = ppl_table(record.sel(policy=others), None, block, resamples, seed).set_index("policy")
        rows = pd.concat([rows, alone.assign(**dict.fromkeys(RATIO, np.nan))])
    mass = whole(record)["sink_mass"].astype("float64").mean(["layer", "head"])
    found = interval(mass, resamples=resamples, seed=seed, at_least=0, at_most=1)
    rows = rows.join(found.to_dataframe()[["mean", "lower", "upper"]].set_axis(list(MASS), axis=1))
    rows["draws"] = record["draws"].to_series() if "draws" in record.coords else 1
    rows = rows.assign(**dict.fromkeys([*RATIO_DRAWS, *OVER_DRAWS, *OVER_CONTROL, *PER_MASS, REMOVED], np.nan))
    for name in comparable:
        _compare(rows, record, name, BASELINE, (RATIO, RATIO_DRAWS), block)
        if (control := control_of[name]) in comparable:
            pair = ppl_table(record.sel(policy=[name, control]), control, block, resamples, seed)
            rows.loc[name, list(OVER_CONTROL)] = pair[RATIO].to_numpy()[0]
            _compare(rows, record, name, control, (OVER_CONTROL, OVER_DRAWS), block)
        if "removed_mass" in record:
            _weigh(rows, record, name)
    most = 1 + margin_of(record)
    rows["verdict"] = [_verdict(low, high, most) for low, high in rows[list(OVER_CONTROL[1:])].to_numpy()]
    roles = [(BASELINE, "baseline")]
    for name, control in control_of.items():
        if control:
            roles += [(name, "effect"), (control, "control")]
        elif name != BASELINE and name not in control_of.values():
            roles.append((name, "effect"))
    table = rows.loc[[name for name, _ in roles]].rename_axis("intervention").reset_index()
    table.insert(1, "role", [role for _, role in roles])
    is_control = table["role"] == "control"
    table.loc[is_control, [*OVER_CONTROL, *OVER_DRAWS]], table.loc[is_control, "verdict"] = np.nan, ""
    table = table[list(COLUMNS)]
    table.attrs = record.attrs | {
        name: every.attrs[name] for name in ("computed", "baseline", "bounds", "over", "confidence")
    }
    table.attrs |= {"resamples": resamples, "seed": seed, "draws": int(rows["draws"].max()), "same": most}
    return table


def draws_said(table: pd.DataFrame) -> str:
    """Over what intervals of draws are, in words; "" where nothing was drawn more than once."""
    draws, texts = int(table.attrs.get("draws", 1)), int(table.attrs.get("sequences", 1))
    if draws < FEWEST:
        return ""
    return (
        f"{draws} draws of each random control in {'the text' if texts == 1 else f'each of {texts} texts'}; intervals "
        "over draws: 95% t within texts, which say nothing of other texts"
    )


def _compare(
    rows: pd.DataFrame,
    record: xr.Dataset,
    name: str,
    other: str,
    columns: tuple[Sequence[str], Sequence[str]],
    block: Any,
) -> None:
    """Note the interval over draws of the perplexity of one row to that of another, and have intervals over batches,
    which share the draws of their text, hold what differs from draw to draw."""
    chance = _chance(record, name, other)
    if chance is None:
        return
    (ratio, low, high), (draws_low, draws_high) = columns
    if rows.loc[[name, other], "draws"].max() >= FEWEST:
        half = stdtrit(chance.freedom, 0.975) * np.sqrt(chance.square)
        rows.loc[name, [draws_low, draws_high]] = rows.loc[name, ratio] * np.exp([-half, half])
    units = units_of(losses(record.sel(policy=[name, other])))
    if units.over == "batches" and block is None:
        bounds = units.of(lambda mean: mean[..., [0]] - mean[..., [1]], chance)
        rows.loc[name, [low, high]] = np.exp([bounds.low[0], bounds.high[0]])


def _chance(record: xr.Dataset, name: str, other: str) -> Chance | None:
    """How uncertain draws make the mean difference in loss between two rows: draws of a text differ within it. None
    where nothing was drawn more than once."""
    if "draw_nll" not in record:
        return None
    one, two = (record["draw_nll"].sel(policy=each).transpose("draw", "sequence").values for each in (name, other))
    one, two = (each[np.isfinite(each).all(1)] for each in (one, two))
    if max(len(one), len(two)) < 2:
        return None
    return chance_of_draws(one, two, record["nll"].sel(policy=name).notnull().sum("token").values)


def _weigh(rows: pd.DataFrame, record: xr.Dataset, name: str) -> None:
    """Note how much attention a row takes away, and its effect for each unit of that."""
    removed = record["removed_mass"].sel(policy=name)
    pair = losses(record.sel(policy=[name, BASELINE]))
    weights = pair.notnull().all("policy").sum("token")
    mass = float((removed * weights).sum(skipna=False) / weights.sum())
    rows.loc[name, REMOVED] = mass
    if not mass > 0:
        return
    third = (0 * pair.isel(policy=[0]) + removed.reset_coords(drop=True)).assign_coords(policy=["removed mass"])
    units = units_of(xr.concat([pair, third.transpose(*pair.dims)], "policy", coords="minimal", compat="override"))
    if units.over == "batches":  # of texts whose mass is known, and no accident
        found = units.of(lambda x: x[..., [0]] - x[..., [1]], _chance(record, name, BASELINE))
        share = found._replace(mean=found.mean / mass, low=found.low / mass, high=found.high / mass)
    else:
        share = units.of_share(lambda x: x[..., [0]] - x[..., [1]], lambda x: x[..., [2]])
    rows.loc[name, list(PER_MASS)] = [float(each[0]) for each in (share.mean, share.low, share.high)]


def margin_of(record: xr.Dataset) -> float:
    """How far a ratio of perplexities may be from one, interval and all, to be called equal to it."""
    return float(record.attrs.get("margin", MARGIN))


def _verdict(low: float, high: float, most: float) -> str:
    if not (np.isfinite(low) and np.isfinite(high)):
        return ""
    if low >= 1 / most and high <= most:
        return "equal"
    return "higher" if low > 1 else "lower" if high < 1 else "open"


@reads
def dose_table(
    record: xr.Dataset, resamples: int = 2000, seed: int = 0, block: int | str | None = None
) -> pd.DataFrame:
    """One row for each arm and dose.

    arm, dose                           "sinks" or "random" keys; the bias on their logits, -inf evicts
    ppl, low, high                      perplexity and its 95% interval
    ratio, ratio_low, ratio_high        to the perplexity at the dose nearest to 0, and its paired interval
    sink_mass, mass_low, mass_high      mean attention on the first keys, and its interval over texts
    output, output_low, output_high     norm of a head's output over that at the dose nearest to 0: mean over layers and
                                        heads of the ratio, and its interval over texts
    Intervals of losses are those of `ppl_table`, over the same texts or batches in all rows; with a `block`, of its
    bootstrap.
    Raises SinkscopeError if the record is not one of `dose_response`.

    >>> sinkscope.dose_table(record, resamples=50).arm.unique().tolist()
    ['sinks', 'random']
    """
    if not {"arm", "dose"} <= set(record.dims):
        raise SinkscopeError("the record has no arm and dose: make one with sinkscope.dose_response.")
    doses, arms = record["dose"].values, [str(arm) for arm in record["arm"].values]
    zero = int(np.abs(doses).argmin())
    names = [f"{arm} {dose}" for arm in arms for dose in doses]
    every = record.nll.transpose("arm", "dose", ...).stack(policy=("arm", "dose")).drop_vars(["arm", "dose", "policy"])
    curves = every.to_dataset(name="nll").assign_coords(policy=names)
    about = ppl_table(curves, names[zero], block, 1, seed).attrs
    block = about.get("block")
    tables, known = [], whole(record)
    for number, arm in enumerate(arms):
        part, own = known.sel(arm=arm), names[number * len(doses) : (number + 1) * len(doses)]
        kept = ppl_table(curves.sel(policy=own), own[zero], block, resamples, seed)[LOSSES]
        mass, norm = part.sink_mass.astype("float64"), part.output_norm.astype("float64")
        for columns, values in ((MASS, mass), (OUTPUT, norm / norm.isel(dose=zero))):
            found = interval(values.mean(["layer", "head"]), resamples=resamples, seed=seed, at_least=0)
            kept[list(columns)] = np.stack([found[bound].values for bound in ("mean", "lower", "upper")], axis=-1)
        kept.insert(0, "arm", arm)
        kept.insert(1, "dose", doses)
        tables.append(kept)
    table = pd.concat(tables, ignore_index=True)
    said = {name: about[name] for name in ("bounds", "over", "confidence")} | {"resamples": resamples, "seed": seed}
    table.attrs = record.attrs | {"reference_dose": float(doses[zero])} | said
    return table

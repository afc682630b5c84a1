"""How often the intervals that sinkscope prints hold what they should: nominal 95% against actual, by simulation.

    python benchmarks/coverage.py                  # the tables of docs/intervals.md, in about two minutes
    python benchmarks/coverage.py --measure        # makes coverage.npz anew, with the demo model (ten minutes)

Every simulation has a fixed seed, a population whose mean is known, and the functions that make the tables. *Kept* is
the share of intervals that are printed: where a text drifts, none is. `coverage.npz` has masses, losses of segments and
of one long text of SmolLM2-135M-Instruct (4-bit weights) on the King James Bible, cache 256; samples are drawn from
them with replacement, so that their mean is the true one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from made_up import Drawn, Measured, made_up_controls, resampled_controls, series
from scipy.special import stdtrit

from sinkscope.analysis.batches import Estimate, Units, chance_of_draws
from sinkscope.analysis.intervals import block_length, interval, resampled_means
from sinkscope.analysis.predictability import predictability_table
from sinkscope.analysis.tasks import share_interval

RECORDS = Path(__file__).with_suffix(".npz")
TRIALS = 4000
PART_TRIALS = 400  # of each head
COLUMNS = 250  # trials at once
EPSILON = 0.3
CONTROL = 64, 192  # where interventions begin and texts end

Row = tuple[str, str, float, float, float | None]
"""What is covered, of how much, the share of intervals that hold it, of all that are printed, and by percentiles."""


def held(low: np.ndarray, high: np.ndarray, truth: float) -> tuple[float, float]:
    """Share of the intervals that hold the truth, of those that there are, and how many there are."""
    known = np.isfinite(low)
    covered = float(((low <= truth) & (truth <= high))[known].mean()) if known.any() else np.nan
    return covered, float(known.mean())


def percentiles(values: np.ndarray, random: np.random.Generator, resamples: int = 1000) -> tuple[np.ndarray, ...]:
    """Bounds [trial] of a percentile bootstrap over the rows of values [text, trial]."""
    drawn = random.integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975], axis=0)
    return low, high


def over_sequences() -> Iterator[Row]:
    """`interval`: masses, rates, entropies, norms, over sequences."""
    with np.load(RECORDS) as kept:
        mass, alpha = kept["mass"].astype(float), kept["alpha"].astype(float)
    head = mass[:, *np.unravel_index(np.argmin(np.abs(mass.std(0) / mass.mean(0) - 1)), mass.shape[1:])]
    drawn: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], np.ndarray], float, dict]] = {
        "normal": (lambda r, shape: r.normal(size=shape), 0.0, {}),
        "lognormal, sd of the log 1": (lambda r, s: r.lognormal(size=s), np.exp(0.5), {"at_least": 0}),
        "lognormal, geometric mean": (lambda r, s: r.normal(size=s), 0.0, {}),
        "a share, beta(0.5, 5)": (lambda r, s: r.beta(0.5, 5, s), 0.5 / 5.5, {"at_least": 0, "at_most": 1}),
    }
    for zeros in (0.25, 0.5, 0.75):
        draw = lambda r, s, none=zeros: np.where(r.random(s) < none, 0.0, r.beta(0.5, 5, s))  # noqa: E731
        truth = (1 - zeros) * 0.5 / 5.5
        drawn[f"a share, {zeros:.0%} of them zero"] = draw, truth, {"at_least": 0, "at_most": 1}
    real = {
        "real: mean mass": mass.mean((1, 2)),
        "real: sink rate": (alpha > EPSILON).mean((1, 2)),
        "real: mass of one head, sd near its mean": head,
    }
    for name, values in real.items():
        draw = lambda r, s, own=values: own[r.integers(len(own), size=s)]  # noqa: E731
        drawn[name] = draw, float(values.mean()), {"at_least": 0, "at_most": 1}
    for name, (draw, truth, ends) in drawn.items():
        for count in (4, 8, 16, 32):
            random = np.random.default_rng(count)
            values = draw(random, (count, TRIALS))
            table = xr.DataArray(values, dims=("sequence", "trial"), coords={"same_text": ("sequence", range(count))})
            found = interval(table, **ends)
            low, high = found.lower.values, found.upper.values
            low = np.where(low < high, low, np.nan)  # bounds of no width say that they mean nothing
            before = np.concatenate([percentiles(part, random) for part in np.array_split(values, 16, axis=1)], axis=1)
            yield (
                name,
                f"{count} sequences",
                *held(low, high, truth),
                held(*before, truth)[0],
            )


def each_part() -> Iterator[Row]:
    """`interval` of each layer and of each head by itself: the middle and the lowest tenth of what is covered."""
    with np.load(RECORDS) as kept:
        mass = kept["mass"].astype(float)
    for name, values in (("layer", mass.mean(2)), ("head", mass.reshape(len(mass), -1))):
        for count in (4, 8, 16, 32):
            random, covered, there = np.random.default_rng(count), [], []
            for part in values.T:
                drawn = part[random.integers(len(part), size=(count, PART_TRIALS))]
                table = xr.DataArray(
                    drawn, dims=("sequence", "trial"), coords={"same_text": ("sequence", range(count))}
                )
                found = interval(table, at_least=0, at_most=1)
                share, known = held(found.lower.values, found.upper.values, float(part.mean()))
                covered.append(share), there.append(known)
            for word, quantile in (("the middle one", 0.5), ("the lowest tenth", 0.1)):
                size = f"{count} sequences"
                yield (
                    f"real: mass of one {name}, {word}",
                    size,
                    float(np.quantile(covered, quantile)),
                    float(np.mean(there)),
                    None,
                )


def found_in(blocks: Iterator[list[list[np.ndarray]]], over: str, differs: Callable | None = None) -> Estimate:
    """The estimates of all trials, which are columns of the losses."""
    own = differs or (lambda mean: mean)
    each = [Units(losses, np.arange(len(losses[0])), over).of(own) for losses in blocks]
    return Estimate(*(np.concatenate(parts) for parts in zip(*each, strict=True)))


def over_one_text() -> Iterator[Row]:
    """`ppl_table` of one text: log-perplexity, and the paired log-ratio."""
    with np.load(RECORDS) as kept:
        text = kept["text"].astype(float)
    for correlation in (0.0, 0.5, 0.9, 0.99):
        for tokens in (100, 400, 1000, 2800, 16000):
            random = np.random.default_rng(tokens)
            trials = TRIALS if tokens < 10_000 else TRIALS // 4
            blocks = [series(random, tokens, COLUMNS, correlation) for _ in range(trials // COLUMNS)]
            found = found_in(([[block]] for block in blocks), "batches")
            few = np.stack(blocks[0].T[:200])
            length = block_length([few[0][:, None]])
            drawn = resampled_means([few.T], length, 400, random)
            before = held(*np.quantile(drawn, [0.025, 0.975], axis=0), 0.0)[0]
            yield f"AR {correlation:g}", f"{tokens:,} tokens", *held(found.low, found.high, 0.0), before
    whole = {"real losses, sinks": text[0], "real log-ratio, window to sinks": text[1] - text[0]}
    for name, values in whole.items():
        for tokens in (1000, 2800):
            random = np.random.default_rng(tokens)
            starts = random.integers(len(values), size=(tokens // 50, TRIALS))  # runs of 50 tokens, in any order
            drawn = values[(starts[:, None] + np.arange(50)[:, None]) % len(values)].reshape(-1, TRIALS)
            found = found_in(([[part]] for part in np.array_split(drawn, 16, axis=1)), "batches")
            yield name, f"{tokens:,} tokens", *held(found.low, found.high, float(values.mean())), None


def topics_as_long_as_the_text() -> Iterator[Row]:
    """One text that keeps to a topic: what no interval covers, and how often that is said."""
    for share in (0.1, 0.4):
        for tokens in (1000, 2800, 12000):
            random = np.random.default_rng(tokens)
            losses = (
                random.standard_normal((tokens, COLUMNS)) + share * series(random, tokens, COLUMNS, np.exp(-1 / tokens))
                for _ in range(1000 // COLUMNS)
            )
            found = found_in(([[block]] for block in losses), "batches")
            name = f"topic as long as the text, {share:g} of the spread of a token"
            yield name, f"{tokens:,} tokens", *held(found.low, found.high, 0.0), None
    with np.load(RECORDS) as kept:
        losses = kept["segments"].astype(float)
    for name, values in (("real losses, sinks", losses[0]), ("real log-ratio, window to sinks", losses[1] - losses[0])):
        found = Units([[values.T]], np.zeros(1), "batches").of(lambda mean: mean)
        covered = held(found.low, found.high, float(values.mean()))
        yield f"{name}: one segment, for all", f"{values.shape[1]} tokens", *covered, None


def over_texts() -> Iterator[Row]:
    """`ppl_table` of several texts or segments: random effects."""
    for between in (0.0, 0.5, 2.0):
        for count in (8, 16, 32):
            random = np.random.default_rng(count)
            texts = (
                [[series(random, 200, COLUMNS, 0.9) + between * random.standard_normal(COLUMNS) for _ in range(count)]]
                for _ in range(TRIALS // COLUMNS)
            )
            found = found_in(texts, "texts")
            name = f"AR 0.9, texts apart by {between:g}"
            yield name, f"{count} segments of 200", *held(found.low, found.high, 0.0), None
    for lengths in ([50, 100, 150, 200], [25, 50, 100, 200, 400, 800], [100] * 7 + [400]):
        random = np.random.default_rng(sum(lengths))
        texts = (
            [[series(random, each, COLUMNS, 0.5) + 0.5 * random.standard_normal(COLUMNS) for each in lengths]]
            for _ in range(TRIALS // COLUMNS)
        )
        found = found_in(texts, "texts")
        yield (
            "AR 0.5, texts apart by 0.5",
            f"{', '.join(map(str, lengths))} tokens",
            *held(found.low, found.high, 0.0),
            None,
        )
    with np.load(RECORDS) as kept:
        losses = kept["segments"].astype(float)
    for name, values in (("real losses, sinks", losses[0]), ("real log-ratio, window to sinks", losses[1] - losses[0])):
        for count in (4, 8, 16):
            random = np.random.default_rng(count)
            picked = random.integers(len(values), size=(count, TRIALS))
            found = found_in(iter([[[values[row].T for row in picked]]]), "texts")
            size = f"{count} segments of {values.shape[1]}"
            yield name, size, *held(found.low, found.high, float(values.mean())), None


def shares() -> Iterator[Row]:
    """`collapse_table` and `factorial_table`: what phantoms close of the gap, and the interaction (Fieller)."""
    full, phantom, value, window = (0.0, 0.5, 1.0, 0.8)  # mean losses beyond those with full sinks
    for correlation in (0.0, 0.9):
        for tokens in (1000, 2800):
            random, low, high = np.random.default_rng(tokens), [], []
            for _ in range(500):
                noise = series(random, tokens, 4, correlation)
                units = Units([[noise + np.array([full, phantom, value, window])]], np.zeros(1), "batches")
                parts = np.array([[0, -1, 0, 1], [-1, 1, 1, -1]])
                gap = np.array(2 * [[-1, 0, 0, 1]])
                found = units.of_share(lambda x, own=parts: x @ own.T, lambda x, own=gap: x @ own.T)
                low.append(found.low), high.append(found.high)
            for place, (name, truth) in enumerate((("denominator, first", 0.375), ("interaction", 0.875))):
                ends = (np.array(each)[:, place] for each in (low, high))
                yield f"{name}, AR {correlation:g}", f"{tokens:,} tokens", *held(*ends, truth), None


def correlations() -> Iterator[Row]:
    """`predictability_table`: rank correlations of a head, jackknife over batches of queries."""
    queries, heads, measures = 448, 20, 80
    for correlation in (0.0, 0.5, 0.9):
        for texts in (1, 4):
            for true in (0.0, -0.4):
                random, low, high = np.random.default_rng(texts), [], []
                for _ in range(measures):
                    measure = series(random, queries, texts, correlation).T
                    noise = np.stack([series(random, queries, heads, correlation) for _ in range(texts)])
                    mass = true * measure[..., None] + np.sqrt(1 - true**2) * noise
                    found = predictability_table(_record(mass, measure), start=1)
                    found = found[found["measure"] == "next_loss"]
                    low.append(found["low"]), high.append(found["high"])
                truth = 6 / np.pi * np.arcsin(true / 2)  # Spearman's of normal values (Pearson 1907)
                covered = held(np.concatenate(low), np.concatenate(high), truth)
                yield f"rho {true:g}, AR {correlation:g}", f"{texts} x {queries} queries", *covered, None


def accuracies() -> Iterator[Row]:
    """`accuracy_table`: shares of right answers, over texts that differ in how well they are answered."""
    for texts, questions in ((16, 1), (48, 1), (8, 10), (24, 10), (8, 40), (24, 40)):
        for truth in (0.04, 0.5, 0.9, 0.96):
            for apart in (0.0, 0.2, 0.4) if questions > 1 else (0.0,):  # correlation of the answers in a text
                random, trials = np.random.default_rng(texts), 2000
                size = (trials, texts)
                odds = (1 - apart) / apart if apart else 0.0
                chance = random.beta(truth * odds, (1 - truth) * odds, size) if apart else np.full(size, truth)
                right = random.random((*size, questions)) < chance[..., None]
                bounds = np.array([share_interval(each)[1:] for each in right.astype(float)])
                what = f"share {truth:g}" + (f", correlation in a text {apart:g}" if questions > 1 else "")
                yield what, f"{texts} texts, {questions} each", *held(*bounds.T, truth), None


def controls() -> Iterator[Row]:
    """`intervention_table`: sinks beside random keys, which are drawn several times in each text."""
    for texts, tokens in ((1, 800), (3, 300), (4, 100), (8, 100), (16, 100)):
        for draws in (2, 3, 20):
            random = np.random.default_rng([texts, draws])
            parts = [made_up_controls(random, texts, tokens, draws, COLUMNS) for _ in range(TRIALS // COLUMNS)]
            size = f"{texts} text{'s' * (texts > 1)} of {tokens} tokens, {draws} draws"
            yield from ((name, size, *covered, None) for name, *covered in compared(parts))
    with np.load(RECORDS) as kept:
        real = {
            name: Measured(*(kept[f"{name} {each}"].astype(float) for each in Measured._fields))
            for name in ("control segments", "control text")
        }
    for name, texts in (
        ("control text", 1),
        ("control segments", 4),
        ("control segments", 8),
        ("control segments", 16),
    ):
        for draws in (2, 3, 20):
            random = np.random.default_rng([texts, draws])
            parts = [resampled_controls(random, real[name], texts, draws, COLUMNS) for _ in range(TRIALS // COLUMNS)]
            size = f"{texts} text{'s' * (texts > 1)} of {real[name].losses.shape[2]} tokens, {draws} draws"
            yield from ((f"real losses: {name}", size, *covered, None) for name, *covered in compared(parts))


def compared(parts: Sequence[Drawn]) -> Iterator[tuple[str, float, float]]:
    """How often intervals of sinks beside random keys hold the truth, and how many there are."""
    found: dict[str, list[np.ndarray]] = {}
    for part in parts:
        texts, tokens, trials = part.losses.shape[1:]
        chance = chance_of_draws(0 * part.draws[:1], part.draws, np.full(texts, tokens))
        columns = [*part.losses, *np.broadcast_to(part.taken[:, :, None], part.losses.shape)]
        units = Units([list(np.concatenate(columns, axis=-1))], np.arange(texts))
        added = chance if units.over == "batches" else None
        own = [slice(start, start + trials) for start in range(0, 4 * trials, trials)]
        ratio = units.of(lambda x, own=own: x[..., own[0]] - x[..., own[1]], added)
        half = stdtrit(chance.freedom, 0.975) * np.sqrt(chance.square)
        ends = {
            "ratio to the control": (ratio.low - part.ratio, ratio.high - part.ratio),
            "the same over draws": (ratio.mean - half - part.within, ratio.mean + half - part.within),
        }
        for row, (name, drawn) in enumerate({"sinks": None, "random keys": added}.items()):
            if np.isnan(part.per_mass[row]).any():
                continue
            top, below = own[row], own[2 + row]
            if units.over == "texts":
                share = units.of_share(lambda x, top=top: x[..., top], lambda x, below=below: x[..., below])
            else:
                mass, share = part.taken[row].mean(0), units.of(lambda x, top=top: x[..., top], drawn)
                share = share._replace(low=share.low / mass, high=share.high / mass)
            ends[f"{name}, for each unit of mass"] = share.low - part.per_mass[row], share.high - part.per_mass[row]
        for name, each in ends.items():
            found.setdefault(name, []).append(np.stack(each))
    for name, each in found.items():
        yield name, *held(*np.concatenate(each, axis=1), 0.0)


def _record(mass: np.ndarray, measure: np.ndarray) -> xr.Dataset:
    """A record of predictability with masses [text, query, head] and a measure [text, query]."""
    sink_mass = mass.transpose(0, 2, 1)[:, None, :, :, None]
    return xr.Dataset(
        {
            "sink_mass": (("sequence", "layer", "head", "query", "sink"), sink_mass),
            "next_loss": (("sequence", "query"), measure),
            "next_entropy": (("sequence", "query"), measure),
        },
        coords={"sink": [0], "length": ("sequence", [mass.shape[1]] * len(mass)), "query": range(mass.shape[1])},
    ).assign_coords(layer=[0], head=range(mass.shape[2]))


def measure() -> None:
    """Make the records anew."""
    import torch

    import sinkscope

    model, tokenizer = sinkscope.load()
    ids = sinkscope.read_tokens(tokenizer, limit=500_000).reshape(-1)
    pieces = torch.stack([ids[1000 + 7000 * piece :][:256] for piece in range(64)])
    mass = sinkscope.measure(model, pieces, [sinkscope.SinkMass(first=1)]).sink_mass.isel(sink=0)
    arms = [sinkscope.SinkWindow(4, 252), sinkscope.Window(256)]
    segments = sinkscope.perplexity(model, [ids[3000 + 14500 * part :][:640] for part in range(32)], arms)
    arms += [sinkscope.SinkWindow(4, 252, values=values) for values in ("zeroed", "added")]
    text = sinkscope.perplexity(model, ids[None, 200_000:212_288], arms)
    passages = {
        "control segments": [ids[5000 + 19_500 * part :][: CONTROL[1]] for part in range(24)],
        "control text": [ids[300_000:][: 4 * CONTROL[1]]],
    }
    controls = {}
    for name, texts in passages.items():
        record = sinkscope.run_interventions(model, texts, [sinkscope.EvictKeys("sinks")], start=CONTROL[0], draws=20)
        losses = record.nll.isel(policy=[1, 2]) - record.nll.isel(policy=0, drop=True)
        drawn = record.draw_nll.isel(policy=2) - record.nll.isel(policy=0, drop=True).mean("token")
        parts = (losses.dropna("token"), drawn.transpose("draw", "sequence"), record.removed_mass.isel(policy=1))
        controls |= {
            f"{name} {each}": part.values.astype("f4") for each, part in zip(Measured._fields, parts, strict=True)
        }
    np.savez_compressed(
        RECORDS,
        **controls,
        mass=mass.isel(query=slice(1, None)).mean("query").astype("f2"),
        alpha=mass.mean("query").astype("f2"),
        segments=segments.nll.values[:, :, 258:].astype("f2"),
        text=text.nll.values[:, 0, 258:].astype("f2"),
    )


PARTS = {
    "Over sequences: Student's t, and its lognormal form for skewed values": over_sequences,
    "Over sequences, of each layer and each head by itself": each_part,
    "Over several texts or segments: Student's t over texts": over_texts,
    "Over one text: Student's t over eight batches": over_one_text,
    "Shares of the collapse: Fieller's interval over eight batches": shares,
    "Rank correlations: a jackknife over batches": correlations,
    "Shares of right answers: Clopper-Pearson, Korn-Graubard over texts with several questions": accuracies,
    "Interventions beside controls drawn at random: t over texts, over batches or over draws, Fieller": controls,
    "What cannot be covered: one text that keeps to a topic": topics_as_long_as_the_text,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="make coverage.npz anew")
    if parser.parse_args().measure:
        measure()
    for title, rows in PARTS.items():
        columns = "covered, % | kept, % | percentiles of a (block) bootstrap, %"
        print(f"\n**{title}**\n\n| | | {columns} |\n|---|---|---|---|---|")
        for name, size, covered, kept, before in rows():
            other = "" if before is None else f"{100 * before:.0f}"
            share = "–" if np.isnan(covered) else f"{100 * covered:.1f}"
            print(f"| {name} | {size} | {share} | {100 * kept:.0f} | {other} |", flush=True)


if __name__ == "__main__":
    main()

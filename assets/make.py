"""The pictures that README and the site show, and the records behind their numbers: the demo model, the demo text.

    python assets/make.py                        all of it, an hour on two cores
    python assets/make.py report collapse        parts of it, by the names of the functions below

`make assets` makes the explorer's pictures too, and what benchmarks/ measure of recall, needles and precision.
`tests/test_kept_numbers.py` reads what README and docs say from the records.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import xarray as xr

import sinkscope
from sinkscope import figures
from sinkscope.lab.bigram import Backcopy
from sinkscope.lab.runs import Text

HERE = Path(__file__).parent
LENGTHS = (64, 256, 1024)  # tokens read, of the texts of the report


def report() -> None:
    """The default report: a picture, and what the headlines hang on."""
    made = sinkscope.report()
    made.figures["sink_mass_heatmap"].savefig(HERE / "sink_mass_heatmap.png", dpi=200)
    keep(headline(made.records), "headline")
    print(made.headline)


def policies() -> None:
    """Four ways to attend, along one text."""
    model, tokenizer = sinkscope.load()
    ways = [sinkscope.Dense(), sinkscope.Window(256), sinkscope.Recompute(256), sinkscope.SinkWindow(4, 252)]
    ids = sinkscope.read_tokens(tokenizer, limit=3072)
    record = sinkscope.perplexity(model, ids, ways, samples=64, text="King James Bible (demo text)")
    figures.log_perplexity(record).savefig(HERE / "log_perplexity.png", dpi=200)
    keep(record, "policies")


def headline(records: dict[str, xr.Dataset]) -> xr.Dataset:
    """Importance of the first token, by head: of the texts of a report read so far, and of its short ones without and
    with BOS. It says the mass too: all T queries give it T alpha, and the first of them gives itself 1."""
    read, short, other = (records[name].sink_mass.isel(sink=0) for name in ("text", "short", "other_bos"))
    short = short.sel(sequence=other["sequence"].values)
    alpha = [read.isel(query=slice(length)).mean("query").reset_coords(drop=True) for length in LENGTHS]
    with_bos = [each.mean("query").reset_coords(drop=True) for each in (short, other)]
    kept = {"alpha": xr.concat(alpha, "length"), "alpha_short": xr.concat(with_bos, "bos")}
    record = xr.Dataset(kept | {"alpha_short": kept["alpha_short"].rename(sequence="short")})
    bos = [records[name].attrs["bos"] for name in ("short", "other_bos")]
    record = record.assign_coords(length=list(LENGTHS), bos=bos)
    return record.assign_attrs(records["text"].attrs, T_short=short.sizes["query"])


def collapse() -> None:
    """The collapse decomposed, with all arms, in segments from all over the demo text."""
    model, tokenizer = sinkscope.load()
    ids = sinkscope.read_tokens(tokenizer, limit=500_000)
    texts = sinkscope.segments(ids, 640, starts=range(3000, 235_000, 14_500))
    where = "16 segments of 640 tokens of the demo text, from token 3,000 on, 14,500 apart"
    keep(late(sinkscope.decompose(model, texts, 256, 4, arms=True, text=where)), "collapse")


def layers() -> None:
    """The collapse in one group of layers at a time."""
    model, tokenizer = sinkscope.load()
    keep(late(sinkscope.decompose_by_layer(model, sinkscope.read_tokens(tokenizer, limit=2048))), "layers")


def late(record: xr.Dataset) -> xr.Dataset:
    """Without the tokens before the first eviction, whose losses are all the same."""
    return record.sel(token=slice(sinkscope.first_evicted(256), None))


def long() -> None:
    """The collapse over one long text."""
    model, tokenizer = sinkscope.load()
    keep(sinkscope.decompose(model, sinkscope.read_tokens(tokenizer, limit=12_288), 512), "long")


def texts() -> None:
    """Both demo texts: the first token and losses of each, with and without BOS, and what the model has by heart."""
    model, tokenizer = sinkscope.load()
    sources, names = (None, "demo:ferry"), ["King James Bible", "The Ferry at Askerholm"]
    read, parts, known = (
        sinkscope.read_segments(tokenizer, sources, length, count, within=1_000_000)
        for length, count in ((1024, 6), (384, 8), (768, 8))
    )
    policies = [sinkscope.Dense(), sinkscope.Window(128), sinkscope.SinkWindow(4, 124)]
    with_bos = parts.roll(1, 1).index_fill(1, parts.new_tensor([0]), tokenizer.bos_token_id)
    alpha = sinkscope.measure(model, read, [sinkscope.SinkMass(first=1)]).sink_mass.isel(sink=0).mean("query")
    for name, record in {
        "texts": alpha.to_dataset(name="alpha"),
        "texts_losses": sinkscope.perplexity(model, parts, policies),
        "texts_bos": sinkscope.perplexity(model, with_bos, policies[1:]),
        "familiar": sinkscope.perplexity(model, known, policies[:1]),
    }.items():
        text = np.repeat(names, record.sizes["sequence"] // len(names))
        keep(record.assign_coords(source=("sequence", text.astype(object))), name)


def emergence() -> None:
    """Sinks that grow or not, in models trained from scratch: nine arms, eight seeds."""
    grown = sinkscope.lab.bigram_backcopy()
    figures.emergence(grown).savefig(HERE / "emergence.png", dpi=130)
    keep(grown.isel(step=[-1]), "emergence")


def lengths() -> None:
    """How large softmax's sink has grown after as many steps, by the length of the texts."""
    grown = {length: sinkscope.lab.bigram_backcopy("softmax", length=length) for length in (32, 48, 64, 96, 128)}
    last = [each.isel(step=[-1], arm=0).drop_vars("seconds") for each in grown.values()]
    keep(xr.concat(last, "length").assign_attrs(length="several"), "lengths")


def copying() -> None:
    """A sink in a language model, on a text that leaves its heads nothing to do but now and then to copy."""
    task = Backcopy.of(Text.of(None, None))
    ids = task.sample(400, 1000, torch.Generator().manual_seed(0))[:, 1:]
    text = "".join(task.characters[token] for token in ids.flatten().tolist())
    sizes = dict(layers=1, heads=2, width=64, length=64, cache_size=32, evaluated=64)
    training = dict(steps=600, batch=64, learning_rate=3e-3, weight_decay=0.01)
    keep(sinkscope.lab.language_model(["sink token", "softmax"], text=text, **sizes, **training), "copying")


def keep(record: xr.Dataset, name: str) -> None:
    sinkscope.save_record(record, HERE / f"{name}.nc")


PARTS = {part.__name__: part for part in (report, policies, collapse, layers, long, texts, emergence, lengths, copying)}

if __name__ == "__main__":
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()

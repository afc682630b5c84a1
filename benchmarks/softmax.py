"""What the softmax laboratory costs, on the demo model: ratios measured in one run, each beside the bar it is held to.

    python benchmarks/softmax.py eviction      # eviction in closed form beside the free probes, T = 4096
    python benchmarks/softmax.py normalisers   # every normaliser against the plain forward, T = 2048
    python benchmarks/softmax.py bigram        # one Bigram-Backcopy run of 1,000 steps
    python benchmarks/softmax.py layers        # where in the model the collapse happens, cache 256, 2,048 tokens

Without a name the first three run, one after the other. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial

import torch
from streaming import bar, demo, medians, timed

import sinkscope

NORMALISERS = (
    sinkscope.Softmax(),
    sinkscope.Softmax1(),
    sinkscope.LearnedSink(0.0),
    sinkscope.ClippedSoftmax(),
    sinkscope.Sigmoid(),
    sinkscope.ReLU(),
)


@torch.no_grad()
def eviction(tokens: int = 4096) -> None:
    model, ids = demo(tokens)

    def captured(*more: sinkscope.EvictionEffect) -> None:
        with sinkscope.capture(model, [*sinkscope.FREE, *more]):
            model(ids)

    seconds = medians(
        {
            "plain": lambda: model(ids),
            "free": captured,
            "closed": partial(captured, sinkscope.EvictionEffect()),
        },
        rounds=3,
    )
    ratio = bar(seconds["closed"] / seconds["free"], 1.10)
    print(f"{tokens} tokens: plain {seconds['plain']:.2f} s, free probes {seconds['free']:.2f} s")
    print(f"  with eviction in closed form {seconds['closed']:.2f} s   {ratio}")


@torch.no_grad()
def normalisers(tokens: int = 2048) -> None:
    model, ids = demo(tokens)

    def changed(normaliser: sinkscope.Softmax) -> None:
        with sinkscope.attached(model, normaliser=normaliser):
            model(ids)

    runs = {"plain": lambda: model(ids)} | {repr(each): partial(changed, each) for each in NORMALISERS}
    seconds = medians(runs, rounds=3)
    plain = seconds.pop("plain")
    print(f"{tokens} tokens: plain {plain:.2f} s")
    for name, each in seconds.items():
        print(f"  {name:40} {each:.2f} s   {bar(each / plain, 2.0)}")


def bigram(steps: int = 1000) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = partial(sinkscope.lab.bigram_backcopy, steps=steps, seeds=[0], folder=folder, progress=False)
        for arm in ("softmax", "sigmoid"):
            seconds, _ = timed(partial(run, arms=[arm]))
            print(f"Bigram-Backcopy, {arm}, {steps} steps: {seconds:.0f} s, of 180 s: {bar(seconds / 180, 1.0)}")


def layers(tokens: int = 2048, cache: int = 256) -> None:
    model, ids = demo(tokens)
    record = sinkscope.decompose_by_layer(model, ids, cache)
    table = sinkscope.ppl_table(record, "dense")
    places = [str(name) for name in record.part.values]
    for part, first, last, row in zip(
        places, record.first_layer.values, record.last_layer.values, table.itertuples(), strict=True
    ):
        where = "" if part == "dense" else f"layers {first}-{last}"
        print(f"  {part:12} {where:14} {row.ppl:8.2f}   x {row.ratio:.3f} [{row.ratio_low:.3f}, {row.ratio_high:.3f}]")


if __name__ == "__main__":
    parts = {"eviction": eviction, "normalisers": normalisers, "bigram": bigram}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=[*parts, "layers"])
    chosen = parser.parse_args().part
    if chosen == "layers":
        layers()
    for name, part in parts.items():
        if chosen in (None, name):
            part()

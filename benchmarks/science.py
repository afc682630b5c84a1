"""What heads and layers are for, on the demo model: ratios measured in one run, each beside the bar it is held to.

    python benchmarks/science.py              # T = 4096
    python benchmarks/science.py --tokens 512 --rounds 1

Kinds and reach beside the free probes, and compression over depth beside a plain forward pass. The demo model has no
gates: theirs are timed on a tiny gated model, against its own free probes. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from streaming import bar, demo, medians

import sinkscope
from sinkscope.hf.tiny import tiny_model
from sinkscope.probes import Probe


@torch.no_grad()
def _captured(model: torch.nn.Module, ids: torch.Tensor, *probes: Probe) -> None:
    with sinkscope.capture(model, probes):
        model(ids)


@torch.no_grad()
def heads_and_layers(tokens: int, rounds: int) -> None:
    model, ids = demo(tokens)
    run = partial(_captured, model, ids)
    seconds = medians(
        {
            "plain": lambda: model(ids),
            "free": partial(run, *sinkscope.FREE),
            "kinds": partial(run, *sinkscope.FREE, sinkscope.SinkPurpose()),
            "reach": partial(run, *sinkscope.FREE, sinkscope.Reach()),
            "both": partial(run, *sinkscope.FREE, sinkscope.SinkPurpose(), sinkscope.Reach()),
            "depth": partial(run, sinkscope.Compression()),
        },
        rounds,
    )
    print(f"{tokens} tokens: plain {seconds['plain']:.2f} s, free probes {seconds['free']:.2f} s")
    for name in ("kinds", "reach", "both"):
        print(f"  with {name:6} {seconds[name]:.2f} s   {bar(seconds[name] / seconds['free'], 1.25)}")
    print(f"  depth alone {seconds['depth']:.2f} s   {bar(seconds['depth'] / seconds['plain'], 1.5)}")


def gates(tokens: int, rounds: int) -> None:
    model = tiny_model("qwen3_next")
    tokens = min(tokens, model.config.max_position_embeddings)
    run = partial(_captured, model, torch.randint(3, 120, (1, tokens)))
    seconds = medians(
        {"free": partial(run, *sinkscope.FREE), "gates": partial(run, *sinkscope.FREE, sinkscope.Gates())}, rounds
    )
    print(f"gates of a tiny model, {tokens} tokens: {bar(seconds['gates'] / seconds['free'], 1.25)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    heads_and_layers(given.tokens, given.rounds)
    gates(given.tokens, given.rounds)

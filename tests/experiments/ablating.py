"""An ablation with three factors and a tokenizer made for it."""

from __future__ import annotations

from sinkscope import ablate

LINE_BREAK = 7
FACTORS = dict(sinks=(0, 1, 4), cache_size=(16, 24), positions=("cache", "original"), kinds=("first", "line breaks"))
COMBINATION = ["cache_size", "kind", "positions", "sinks"]
EXACT = ["cell", *COMBINATION, "ppl", "low", "high", "ratio", "ratio_low", "ratio_high"]


class Tokenizer:
    """One that turns every text into the ids it was made with."""

    def __init__(self, *ids, last="\n"):
        self.ids, self.last = list(ids), last

    def encode(self, text, add_special_tokens):
        assert text == "\n" and not add_special_tokens
        return self.ids

    def decode(self, ids):
        return self.last if ids == self.ids[-1:] else "?"


class Interrupted(Exception):
    """The end of a sweep before its time."""


def ablated(model, ids, **more):
    """The table over these factors, or others given."""
    return ablate(model, ids, tokenizer=Tokenizer(LINE_BREAK), resamples=50, progress=False, **(FACTORS | more))

"""Recall by distance and needles on the demo model: python benchmarks/tasks.py OUT [--needles].

Recall under four policies on 8,192 tokens of the demo text, with its control, timed beside a plain forward pass over as
many tokens; and needles under six ways to attend. The records land in OUT; those behind
docs/tasks.md are in assets.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

import sinkscope

CACHE = 128


def main(out: Path, has_needles: bool) -> None:
    """Print seconds and tables."""
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = sinkscope.load()
    ids = sinkscope.read_tokens(tokenizer, limit=8192, start=100_000)
    sinks, scored = (
        sinkscope.SinkWindow(4, CACHE - 4),
        [sinkscope.HeavyHitters(CACHE, CACHE // 2), sinkscope.TOVA(CACHE)],
    )
    ways = [sinkscope.Dense(), sinkscope.Window(CACHE), sinkscope.Recompute(CACHE), sinks, *scored]
    if has_needles:
        begun = time.perf_counter()
        record = sinkscope.needle_recall(
            model, tokenizer, ids, ways, lengths=192, depths=(0, 0.5, 1), trials=6, chat=True
        )
        print(f"needles, six policies: {time.perf_counter() - begun:.0f} s")
        sinkscope.save_record(record, out / "needles.nc")
        print(sinkscope.accuracy_table(record).to_string())
        return
    begun = time.process_time()
    with torch.no_grad():
        model(ids[:, :2048])
    plain = (time.process_time() - begun) * 4
    begun, busy = time.perf_counter(), time.process_time()
    four = [ways[0], ways[1], ways[3], ways[5]]
    record = sinkscope.recall(model, ids, four, distances=(64, 256, 512), passages=4)
    spent, used = time.perf_counter() - begun, time.process_time() - busy
    print(f"recall, four policies: {spent:.0f} s on the clock; of the processor, which hardly feels what else runs,")
    print(f"{used:.0f} s, {used / plain:.1f} times a forward pass over 8,192 tokens (bar: 360 s)")
    sinkscope.save_record(record, out / "recall.nc")
    print(sinkscope.recall_table(record).to_string())


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--needles" in sys.argv)

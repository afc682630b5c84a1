"""What attention between spans costs beside the free probes, and a record of an answer beside plain generate.

    python benchmarks/spans.py [--tokens 4096] [--written 192] [--rounds 1]

Both are ratios of times that alternate within one process, on the demo model; medians over the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

QUESTION = "Name the rivers of Eden, and tell what each of them is known for."
SPANS = ("special", "title", "first half", "second half", "end")


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock and of the processor; the second hardly feels what else runs."""
    start, busy = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - busy


def main() -> None:
    import torch

    import sinkscope
    from sinkscope.probes import FREE, Received, SpanMass

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--written", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()

    model, tokenizer = sinkscope.load()
    ids = sinkscope.read_tokens(tokenizer, limit=options.tokens)
    count = ids.shape[1]
    edges = [0, 1, 24, count // 2, count - 64, count]
    spans = sinkscope.Spans(SPANS, list(pairwise(edges)))
    words = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    messages, ends = [{"role": "user", "content": QUESTION}], model.generation_config.eos_token_id
    model.generation_config.eos_token_id = None  # both write to the limit

    def written() -> object:
        with torch.no_grad():
            return model.generate(**words, max_new_tokens=options.written, do_sample=False, pad_token_id=0)

    runs: dict[str, Callable[[], object]] = {
        "free": lambda: sinkscope.measure(model, ids, FREE, progress=False),
        "free + Received": lambda: sinkscope.measure(model, ids, (*FREE, Received()), progress=False),
        "free + SpanMass": lambda: sinkscope.measure(model, ids, (*FREE, SpanMass(spans)), progress=False),
        "generate": written,
        "generate_record, free probes": lambda: sinkscope.generate_record(
            model, tokenizer, messages, options.written, probes=FREE, progress=False
        ),
        "generate_record": lambda: sinkscope.generate_record(
            model, tokenizer, messages, options.written, progress=False
        ),
    }
    sinkscope.measure(model, ids[:, :64], (*FREE, Received()))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(timed(run))
    model.generation_config.eos_token_id = ends
    median = {name: [statistics.median(each) for each in zip(*pairs, strict=True)] for name, pairs in times.items()}
    sizes = f"{count:,} tokens read; {words['input_ids'].shape[1]} + {options.written} tokens written"
    print(f"{sizes}; {torch.get_num_threads()} threads")
    for name, (clock, busy) in median.items():
        base = median["generate" if name.startswith("generate") else "free"]
        print(f"{name:30} {clock:7.2f} s x {clock / base[0]:.3f}   processor {busy:7.2f} s x {busy / base[1]:.3f}")
    print("bars: free + SpanMass at most x 1.15, generate_record at most x 1.10")


if __name__ == "__main__":
    main()

"""What capturing costs, on the demo model: times and peak memory as ratios to a plain forward of the same run.

    python benchmarks/capture.py [--tokens 4096] [--rounds 3] [--long 8192 16384 32768] [--no-eager]

Every line states the bar it is held to. Times alternate between the variants within one process, and the median over
the rounds counts; peak memory is that of a process of its own for each variant.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

IMPORTS = "import torch, transformers, transformers.models.llama.modeling_llama"


def variants(model, ids) -> dict[str, Callable[[], object]]:
    import sinkscope

    def captured(probes):
        with sinkscope.capture(model, probes) as scope:
            model(ids)
        return scope.record

    def eager():
        model.set_attn_implementation("eager")
        maps = model(ids, output_attentions=True).attentions
        model.set_attn_implementation("sdpa")
        return [layer[..., :4].clone() for layer in maps]

    return {
        "plain": lambda: model(ids),
        "free": lambda: captured(sinkscope.FREE),
        "all": lambda: captured(sinkscope.ALL),
        "eager": eager,
        "long": lambda: sinkscope.measure(model, ids, progress=False),
    }


def prepared(tokens: int):
    import sinkscope

    model, tokenizer = sinkscope.load()
    ids = sinkscope.read_tokens(tokenizer, limit=tokens)
    model(ids[:, :64])
    return variants(model, ids)


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def child(name: str, tokens: int) -> None:
    """One variant in a process of its own: print its time and peak memory."""
    import torch

    with torch.no_grad():
        run = prepared(tokens)[name]
        forget_peak()
        seconds = timed(run)
    print(json.dumps({"seconds": seconds, "peak": peak_memory()}))


def forget_peak() -> None:
    """Loading a model takes more memory than running it: count from here on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """Largest resident memory since then, GiB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def in_process(name: str, tokens: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", name, "--tokens", str(tokens)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def seconds_of(code: str) -> float:
    return min(timed(lambda: subprocess.run([sys.executable, "-c", code], check=True)) for _ in range(3))


def verdict(value: float, bar: float) -> str:
    return "ok" if value <= bar else "MISSED"


def report(tokens: int, rounds: int, eager: bool, long: list[int]) -> None:
    import torch

    with torch.no_grad():
        runs = prepared(tokens)
        laps = {name: [] for name in ("plain", "free", "all")}
        for _ in range(rounds):
            for name, times in laps.items():
                times.append(timed(runs[name]))
    del runs
    median = {name: statistics.median(times) for name, times in laps.items()}
    alone = {name: in_process(name, tokens) for name in (*laps, *(["eager"] if eager else []))}
    plain = alone["plain"]

    print(f"{tokens} tokens, {torch.get_num_threads()} threads, median of {rounds}; bars in brackets")
    print(f"plain SDPA forward   {median['plain']:7.2f} s   {plain['peak']:6.2f} GiB")
    for name, time_bar, memory_bar in (("free", 1.05, 1.15), ("all", 2.0, None)):
        ratio, memory = median[name] / median["plain"], alone[name]["peak"] / plain["peak"]
        limit = f"[{memory_bar}] {verdict(memory, memory_bar)}" if memory_bar else ""
        print(
            f"{name + ' probes':20} {median[name]:7.2f} s   {alone[name]['peak']:6.2f} GiB   "
            f"time x {ratio:.3f} [{time_bar}] {verdict(ratio, time_bar)}   memory x {memory:.3f} {limit}"
        )
    if eager:
        maps = alone["eager"]
        print(
            f"{'output_attentions':20} {maps['seconds']:7.2f} s   {maps['peak']:6.2f} GiB   "
            f"time x {maps['seconds'] / median['plain']:.1f}   memory x {maps['peak'] / plain['peak']:.1f}"
        )

    bare, package = seconds_of("pass"), seconds_of("import sinkscope")
    print(f"import sinkscope     {package - bare:7.2f} s   [1.5] {verdict(package - bare, 1.5)}")
    loaded = seconds_of(f"{IMPORTS}; import sinkscope; sinkscope.load()") - seconds_of(IMPORTS)
    print(
        f"second load()        {loaded:7.2f} s   [3.0] {verdict(loaded, 3.0)}   beside importing torch and transformers"
    )

    for length in long:
        run = in_process("long", length)
        print(f"free probes, measure(), T = {length:6}: {run['seconds']:7.1f} s   {run['peak']:.2f} GiB", end="")
        print(f"   [8.0] {verdict(run['peak'], 8.0)}" if length == 32768 else "", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=int, nargs="*", default=[8192, 16384, 32768])
    parser.add_argument("--no-eager", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.tokens)
    else:
        report(options.tokens, options.rounds, not options.no_eager, options.long)

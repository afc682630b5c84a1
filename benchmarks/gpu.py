"""What sinkscope costs on a GPU: times and peak memory as ratios to what plain transformers takes in the same run.

    python benchmarks/gpu.py                               # everything; it prints one table
    python benchmarks/gpu.py --shapes 1B --tokens 8192     # one shape, one length

The models have the shapes of Llama 3 with 1 and 8 billion weights, random and in bfloat16, and are made on the device:
nothing is downloaded. What is compared takes turns within one process; a time is the median over the rounds, between
two events on the device with nothing left to do before the first and after the second, and memory is the most that was
allocated at once, weights included. What does not fit the device is said to, and left out.

- forward: free probes and all probes against a plain forward pass with SDPA; `output_attentions=True` for comparison,
  where T x T maps fit.
- stream: losses under sinks + window in blocks, against plain forward passes over sequences of a block.
- decode: one token with a full `SinkCache`, against `DynamicCache` of as many tokens.
- explorer: a policy is changed, until all that it shows is there; against a plain forward pass over the same text.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import sinkscope
from sinkscope.attention.attend import fused_kernel
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.text_model import TextModel
from sinkscope.hf.caches import growing_cache, with_cache

SINKS = 4
BARS = {  # the most that is accepted, at this shape and length; None is any length
    ("forward", "free probes"): ("8B", 8192, 1.05),
    ("forward", "all probes"): ("8B", 8192, 2.0),
    ("decode", "SinkCache"): ("8B", None, 1.0),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-style decoder."""

    name: str
    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int = 128_256


@dataclass(frozen=True)
class Setting:
    """What is run.

    Attributes:
        device, dtype: of the models.
        shapes: of the models, one after the other.
        lengths: tokens of forward passes.
        longest_maps: the most tokens for which T x T maps are asked for.
        cache: tokens that are kept, and a block of streaming.
        blocks: how many of them the streamed text has.
        explored: tokens of the explorer's text.
        rounds: how often everything takes its turn; steps: how many tokens are decoded.
    """

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    shapes: tuple[Shape, ...] = (
        Shape("1B", width=2048, layers=16, heads=32, kv_heads=8, inner=8192),
        Shape("8B", width=4096, layers=32, heads=32, kv_heads=8, inner=14_336),
    )
    lengths: tuple[int, ...] = (2048, 8192, 32_768, 131_072)
    longest_maps: int = 2048
    cache: int = 1024
    blocks: int = 16
    explored: int = 512
    rounds: int = 5
    steps: int = 100


@dataclass(frozen=True)
class Row:
    """One line of the table: milliseconds and bytes, and both over those of what it is compared with."""

    shape: str
    part: str
    tokens: int
    name: str
    milliseconds: float
    peak: int
    time_ratio: float
    memory_ratio: float

    def cells(self) -> list[str]:
        verdict, bar = "", BARS.get((self.part, self.name))
        if bar and self.shape == bar[0] and bar[1] in (None, self.tokens):
            verdict = f"at most {bar[2]}: {'ok' if self.time_ratio <= bar[2] else 'MISSED'}"
        ratios = (f"{ratio:.3f}" if ratio == ratio else "" for ratio in (self.time_ratio, self.memory_ratio))
        took, most = f"{self.milliseconds:.2f}", f"{self.peak / 2**30:.2f}"
        return [self.shape, self.part, f"{self.tokens:,}", self.name, took, *ratios, most, verdict]


HEAD = ["shape", "part", "tokens", "", "ms", "time ×", "memory ×", "peak GiB", "bar"]


def build(shape: Shape, setting: Setting) -> nn.Module:
    """A model of this shape with random weights, made where it is to run."""
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=max(*setting.lengths, setting.cache * (setting.blocks + 1)),
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, bos_token_id=0, eos_token_id=None,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(setting.dtype)
    try:
        with torch.device(setting.device):
            return transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def text(shape: Shape, tokens: int, setting: Setting) -> Tensor:
    """Random token ids [1, token]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, shape.vocabulary, (1, tokens), generator=generator).to(setting.device)


class Clock:
    """Times on a device, and the memory that was allocated meanwhile."""

    def __init__(self, device: str) -> None:
        self.on_gpu = torch.device(device).type == "cuda"

    def __call__(self, run: Callable[[], Any]) -> tuple[float, int]:
        """Milliseconds that a function takes, and the most bytes allocated at once (0 on a CPU)."""
        if not self.on_gpu:
            begun = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - begun), 0
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end), torch.cuda.max_memory_allocated()


def in_turns(
    runs: dict[str, Callable[[], Any]], rounds: int, clock: Clock, before: Callable[[], Any] = lambda: None
) -> dict[str, tuple[float, int]]:
    """Median milliseconds and largest peak of each, in turns, after a round that does not count.

    `before` is called before each, and is no part of its time. What does not fit the device is left out from then on,
    with a line that says so.
    """
    laps: dict[str, list[tuple[float, int]]] = {name: [] for name in runs}
    for number in range(-1, rounds):
        for name in list(laps):
            before()
            try:
                lap = clock(runs[name])
            except torch.OutOfMemoryError:
                del laps[name]
                torch.cuda.empty_cache()
                note(f"  {name}: does not fit the device")
                continue
            if number >= 0:
                laps[name].append(lap)
    return {
        name: (statistics.median(took for took, _ in each), max(peak for _, peak in each))
        for name, each in laps.items()
    }


def rows(shape: Shape, part: str, tokens: int, found: dict[str, tuple[float, int]], against: str) -> Iterator[Row]:
    """The lines of one comparison; without ratios where the thing compared with did not fit."""
    base_time, base_peak = found.get(against, (float("nan"), 0))
    for name, (took, peak) in found.items():
        yield Row(
            shape.name,
            part,
            tokens,
            name,
            took,
            peak,
            took / base_time,
            peak / base_peak if base_peak else float("nan"),
        )


def forward(model: Any, shape: Shape, setting: Setting, clock: Clock) -> Iterator[Row]:
    """Probes beside a plain forward pass; only the last token's logits, which would take more than all else."""
    for tokens in setting.lengths:
        note(f"{shape.name}: forward passes over {tokens:,} tokens")
        ids = text(shape, tokens, setting)
        run = partial(model, ids, use_cache=False, logits_to_keep=1)

        def captured(probes: Any, run: Callable[[], Any] = run) -> Any:
            with sinkscope.capture(model, probes) as scope:
                run()
            return scope.record

        def maps(run: Callable[..., Any] = run) -> None:
            model.set_attn_implementation("eager")
            try:
                run(output_attentions=True)
            finally:
                model.set_attn_implementation("sdpa")

        runs = {
            "plain": run,
            "free probes": partial(captured, sinkscope.FREE),
            "all probes": partial(captured, sinkscope.ALL),
        }
        if tokens <= setting.longest_maps:
            runs["output_attentions"] = maps
        rounds = setting.rounds if tokens <= 8192 else min(setting.rounds, 3)
        yield from rows(shape, "forward", tokens, in_turns(runs, rounds, clock), "plain")


def stream(model: Any, shape: Shape, setting: Setting, clock: Clock) -> Iterator[Row]:
    """Losses under sinks + window, beside those of sequences as long as a block."""
    size, tokens = setting.cache, setting.cache * setting.blocks
    note(f"{shape.name}: {tokens:,} tokens in blocks of {size:,}")
    ids = text(shape, tokens + 1, setting)
    policy = sinkscope.SinkWindow(SINKS, size - SINKS)

    def plain() -> None:
        for at in range(0, tokens, size):
            logits = model(ids[:, at : at + size], use_cache=False).logits
            F.cross_entropy(logits[0].float(), ids[0, at + 1 : at + size + 1])

    runs = {
        "plain": plain,
        "sinks + window": lambda: sinkscope.perplexity(model, ids, [policy], block=size, progress=False),
    }
    yield from rows(shape, "stream", tokens, in_turns(runs, setting.rounds, clock), "plain")


def decode(model: Any, shape: Shape, setting: Setting, clock: Clock) -> Iterator[Row]:
    """One more token with a full cache; the one that grows is cut back after each."""
    size = setting.cache
    note(f"{shape.name}: decoding with {size:,} tokens in the cache")
    ids, dense = text(shape, size + 1, setting), growing_cache()
    with sinkscope.SinkCache(model, sinks=SINKS, window=size - SINKS) as cache:
        for each in (cache, dense):
            model(ids[:, :size], **with_cache(model, each))
        runs = {
            name: partial(model, ids[:, size:], **with_cache(model, each))
            for name, each in (("DynamicCache", dense), ("SinkCache", cache))
        }

        def cut_back() -> None:
            if (grown := dense.get_seq_length() - size) > 0:
                dense.crop(-grown)

        found = in_turns(runs, setting.steps, clock, before=cut_back)
    yield from rows(shape, "decode", size, found, "DynamicCache")


def explorer(model: Any, shape: Shape, setting: Setting, clock: Clock) -> Iterator[Row]:
    """The explorer's controller, without its widgets; every change is one that was not shown before."""
    tokens = setting.explored
    note(f"{shape.name}: the explorer on {tokens:,} tokens")
    ids = text(shape, tokens, setting)
    controller = Controller(TextModel(model, ids[0]), [""] * tokens)
    windows = iter(range(tokens // 2, 1, -1))

    def settled(act: Callable[[], None]) -> None:
        act()
        controller.wait()
        if controller.problem:
            raise RuntimeError(controller.problem)

    try:
        settled(controller.begin)
        runs = {
            "plain": partial(model, ids, use_cache=False),
            "window": lambda: settled(partial(controller.change, kind="window", window=next(windows))),
            "sinks": lambda: settled(partial(controller.change, kind="sinks", sinks=SINKS, window=next(windows))),
        }
        yield from rows(shape, "explorer", tokens, in_turns(runs, setting.rounds, clock), "plain")
    finally:
        controller.close()


@torch.no_grad()
def measured(setting: Setting) -> list[Row]:
    """All rows, shape after shape."""
    clock, found = Clock(setting.device), list[Row]()
    for shape in setting.shapes:
        model = build(shape, setting)
        for part in (forward, stream, decode, explorer):
            found += part(model, shape, setting, clock)
        del model
        if clock.on_gpu:
            torch.cuda.empty_cache()
    return found


def note(line: str) -> None:
    """What is under way, beside the table."""
    print(line, file=sys.stderr, flush=True)


def main(setting: Setting) -> int:
    """Run everything and print the table; the exit code, 2 where there is no GPU."""
    on_gpu = torch.device(setting.device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        note("there is no GPU here that torch can use: run this on a machine with one.")
        return 2
    name = torch.cuda.get_device_name() if on_gpu else setting.device
    lines = [row.cells() for row in measured(setting)]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, sinkscope {sinkscope.__version__}"
    print(f"{name}, {str(setting.dtype).removeprefix('torch.')}, {versions}; medians of {setting.rounds} rounds,")
    print(f"{setting.steps} tokens where one is decoded; the first line of each part is what the others are over;")
    kernel = fused_kernel(torch.device(setting.device).type, setting.dtype)
    print(f"attention of the probes: {kernel.__doc__ if kernel else 'computed blockwise, without a fused kernel.'}\n")
    for line in (HEAD, ["---"] * len(HEAD), *lines):
        print(f"| {' | '.join(line)} |")
    return 0


if __name__ == "__main__":
    usual = Setting()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=[shape.name for shape in usual.shapes])
    parser.add_argument("--tokens", type=int, nargs="+", default=usual.lengths, help="of forward passes")
    parser.add_argument("--rounds", type=int, default=usual.rounds)
    given = parser.parse_args()
    chosen = tuple(shape for shape in usual.shapes if given.shapes is None or shape.name in given.shapes)
    sys.exit(main(Setting(shapes=chosen, lengths=tuple(given.tokens), rounds=given.rounds)))

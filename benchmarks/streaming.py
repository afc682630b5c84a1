"""What streaming costs, on the demo model: ratios measured in one run, each beside the bar it is held to.

    python benchmarks/streaming.py losses      # block-parallel losses against one token at a time and a plain forward
    python benchmarks/streaming.py decode      # SinkCache against DynamicCache and against rotating the window anew
    python benchmarks/streaming.py collapse    # window, sinks and re-computation at cache 512 over 16,384 tokens
    python benchmarks/streaming.py recompute   # re-computation against sink + window per token, cache 256 to 2048
    python benchmarks/streaming.py split       # decoding over 32K keys, whole and in chunks
    python benchmarks/streaming.py long --tokens 65536 [or 1000000]

Without a name the first five run, one after the other. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F

import sinkscope

CACHE, SINKS = 1024, 4
LAST = 10_000  # losses that are compared at the end of a long text
MIDDLE = 500_000  # tokens into the demo text


def demo(tokens: int, start: int = MIDDLE):
    model, tokenizer = sinkscope.load()
    return model, sinkscope.read_tokens(tokenizer, limit=tokens, start=start)


def timed(run: Callable[[], object]) -> tuple[float, object]:
    begun = time.perf_counter()
    result = run()
    return time.perf_counter() - begun, result


def medians(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turns, after one round that does not count."""
    laps: dict[str, list[float]] = {name: [] for name in runs}
    for lap in range(rounds + 1):
        for name, run in runs.items():
            seconds, _ = timed(run)
            if lap:
                laps[name].append(seconds)
    return {name: statistics.median(times) for name, times in laps.items()}


def bar(value: float, limit: float, least: bool = False) -> str:
    met = value >= limit if least else value <= limit
    return f"x {value:.2f} [{'>=' if least else '<='} {limit}] {'ok' if met else 'MISSED'}"


@torch.no_grad()
def losses() -> None:
    tokens, alone = 8 * CACHE, CACHE + CACHE // 2
    model, ids = demo(tokens + 1)
    policy = sinkscope.SinkWindow(SINKS, CACHE - SINKS)

    def plain() -> None:
        for at in range(0, tokens, CACHE):
            logits = model(ids[:, at : at + CACHE], use_cache=False).logits
            F.cross_entropy(logits[0], ids[0, at + 1 : at + CACHE + 1])

    def blocks():
        return sinkscope.perplexity(model, ids, [policy], progress=False)

    median = medians({"plain": plain, "blocks": blocks}, 3)
    single, laps = token_loop(model, ids[:, : alone + 1])
    loop, block = statistics.median(laps[CACHE:]), median["blocks"] / tokens  # once the cache is full
    gap = float(abs(single - blocks().nll.values[0, 0, 1 : alone + 1]).max())
    print(f"sink + window losses, cache {CACHE}, {tokens} tokens")
    ratio = bar(median["blocks"] / median["plain"], 1.2)
    print(f"  plain forward, sequences of {CACHE}  {median['plain']:7.2f} s")
    print(f"  blocks of {CACHE}                    {median['blocks']:7.2f} s   {ratio}")
    print(f"  one token at a time ({alone} tokens) {loop * 1e3:7.2f} ms a token, blocks {block * 1e3:.2f}   "
          f"{bar(loop / block, 40, least=True)}")  # fmt: skip
    print(f"  largest difference of a loss {gap:.1e} nats [<= 1e-3] {'ok' if gap <= 1e-3 else 'MISSED'}")


def token_loop(model, ids):
    """Losses and seconds of each token as StreamingLLM's own code goes: all keys rotated anew for every token."""
    cache, out, laps = Rerotated(model, SINKS, CACHE - SINKS), [], []
    for at in range(ids.shape[1] - 1):
        seconds, logits = timed(partial(cache.step, ids[:, at : at + 1]))
        laps.append(seconds)
        out.append(F.cross_entropy(logits[0], ids[0, at + 1]))
    return torch.stack(out).numpy(), laps


class Rerotated:
    """A window of unrotated keys, concatenated and rotated for every token: the reference's way, for Llama."""

    def __init__(self, model, sinks: int, window: int) -> None:
        from transformers import AttentionInterface, AttentionMaskInterface

        self.model, self.sinks, self.window = model, sinks, window
        self.held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.frequencies = model.model.rotary_emb.inv_freq.double()
        AttentionInterface.register("rerotated", self.attention)
        AttentionMaskInterface.register("rerotated", lambda *a, **k: None)

    def fill(self) -> None:
        """Be full, of anything: for timing."""
        config = self.model.config
        shape = (1, config.num_key_value_heads, self.sinks + self.window, config.head_dim)
        self.held = {layer: (torch.randn(shape), torch.randn(shape)) for layer in range(config.num_hidden_layers)}

    def step(self, token):
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("rerotated")
        try:
            place = torch.zeros(1, 1, dtype=torch.long)  # rotated here, not by the model
            return self.model(token, position_ids=place, use_cache=False).logits[:, -1]
        finally:
            self.model.set_attn_implementation(before)

    def attention(self, module, query, key, value, mask, scaling=None, **_):
        layer = module.layer_idx
        if layer in self.held:
            key, value = (torch.cat([old, new], 2) for old, new in zip(self.held[layer], (key, value), strict=True))
        count = key.shape[2]
        places = torch.arange(count)
        output = F.scaled_dot_product_attention(
            self.rotated(query, places[-1:]), self.rotated(key, places), value, scale=scaling, enable_gqa=True
        )
        if count > self.sinks + self.window:
            keep = torch.cat([places[: self.sinks], places[count - self.window :]])
            key, value = key[:, :, keep], value[:, :, keep]
        self.held[layer] = (key, value)
        return output.transpose(1, 2), None

    def rotated(self, states, places):
        angles = torch.cat([torch.outer(places.double(), self.frequencies)] * 2, -1)
        first, second = states.chunk(2, -1)
        return states * angles.cos().float() + torch.cat([-second, first], -1) * angles.sin().float()


def decode() -> None:
    model, ids = demo(CACHE + 400)
    decode_with("the demo model", model, ids)
    decode_with("a model of 4 layers, 256 wide, whose weights hardly count", small(), ids % 128)


def small():
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=4,
        )
    ).eval()


@torch.no_grad()
def decode_with(name: str, model, ids) -> None:
    from transformers import DynamicCache

    steps, laps = 150, {"SinkCache": [], "DynamicCache": [], "rotating all anew": []}
    sink = sinkscope.SinkCache(model, sinks=SINKS, window=CACHE - SINKS)
    anew, dense = Rerotated(model, SINKS, CACHE - SINKS), DynamicCache()
    with sink:
        model(ids[:, :CACHE], cache=sink)
        model(ids[:, :CACHE], cache=dense)
        anew.fill()
        for at in range(CACHE, CACHE + steps):
            token = ids[:, at : at + 1]
            laps["SinkCache"].append(timed(partial(model, token, cache=sink))[0])
            laps["DynamicCache"].append(timed(partial(model, token, cache=dense))[0])
            laps["rotating all anew"].append(timed(partial(anew.step, token))[0])
            dense.crop(-1)
    median = {name: statistics.median(times[20:]) * 1e3 for name, times in laps.items()}
    print(f"decoding at {CACHE} tokens, {name}: ms a token, median of {steps - 20}")
    for way, value in median.items():
        print(f"  {way:20} {value:7.2f}")
    print(f"  SinkCache over DynamicCache   {bar(median['SinkCache'] / median['DynamicCache'], 1.0)}")
    print(f"  rotating anew over SinkCache  {bar(median['rotating all anew'] / median['SinkCache'], 4, least=True)}")


def collapse() -> None:
    model, ids = demo(16_384)
    ways = [sinkscope.Window(512), sinkscope.SinkWindow(4, 508), sinkscope.Recompute(512)]
    record = sinkscope.perplexity(model, ids, ways, progress=False)
    print(f"collapse and recovery, cache 512, {ids.numel()} tokens; seconds {record.seconds.values.round(1)}")
    print(sinkscope.ppl_table(record.isel(policy=[0, 1]), baseline="sinks 4+508").to_string(index=False))
    print(sinkscope.ppl_table(record).to_string(index=False))
    whole, common = sinkscope.ppl(record.isel(policy=[0, 1])).values, sinkscope.ppl(record).values
    print(f"  0 sinks over 4 sinks, all tokens        {bar(whole[0] / whole[1], 1.5, least=True)}")
    print(f"  4 sinks over re-computation, same tokens {bar(common[1] / common[2], 1.03)}")


@torch.no_grad()
def recompute() -> None:
    model, ids = demo(2048 + 64)
    print("ms per decoded token (the paper's Figure 10), re-computation against sink + window")
    for size in (256, 512, 1024, 2048):
        with sinkscope.SinkCache(model, sinks=SINKS, window=size - SINKS) as cache:
            model(ids[:, : size + 1], cache=cache)
            stream = [timed(partial(model, ids[:, at : at + 1], cache=cache))[0] for at in range(size + 1, size + 40)]
        again = [timed(partial(model, ids[:, :size], use_cache=False, logits_to_keep=1))[0] for _ in range(3)]
        slow, fast = statistics.median(again) * 1e3, statistics.median(stream[5:]) * 1e3
        print(f"  cache {size:5}   {slow:8.1f} against {fast:6.1f}   x {slow / fast:.1f}")


@torch.no_grad()
def split() -> None:
    from sinkscope import attend
    from sinkscope.attention.masks import FullMask

    keys, chunk = 32_768, 2048
    generator = torch.Generator().manual_seed(0)
    print(f"decoding over {keys} keys, whole and in chunks of {chunk}")
    for heads, kv_heads in ((9, 3), (1, 1)):
        query = torch.randn(1, heads, 1, 64, generator=generator)
        key, value = (torch.randn(1, kv_heads, keys, 64, generator=generator) for _ in range(2))
        runs = {
            "whole": lambda q=query, k=key, v=value: attend(q, k, v, FullMask()),
            "split": lambda q=query, k=key, v=value: sinkscope.attend_split(q, k, v, chunk=chunk),
        }
        gap = float((runs["whole"]()[0] - runs["split"]()[0]).abs().max())
        median = medians(runs, 50)
        print(
            f"  {heads} heads, {kv_heads} kv heads: {median['whole'] * 1e3:.3f} ms whole, "
            f"{median['split'] * 1e3:.3f} ms split, largest difference {gap:.1e}"
        )


def long(tokens: int) -> None:
    model, ids = demo(tokens, start=0)
    process, marks = psutil.Process(), []

    def look(*_) -> None:
        marks.append(process.memory_info().rss / 2**20)

    hook = model.register_forward_hook(look)
    seconds, record = timed(
        lambda: sinkscope.perplexity(
            model, ids, [sinkscope.SinkWindow(SINKS, CACHE - SINKS)], checkpoint=Path(f"long-{tokens}"), progress=None
        )
    )
    hook.remove()
    print(
        f"  the last {LAST} losses differ by {tail_error(model, ids, record):.1e} nats at most from those of the sinks "
        "and the end of the text alone, read with positions rebased at other moments"
    )
    settled = marks[10:]
    print(f"{ids.numel()} tokens, sinks {SINKS}+{CACHE - SINKS}: {seconds / 60:.1f} minutes, "
          f"{ids.numel() / seconds:.0f} tokens a second, perplexity {float(sinkscope.ppl(record)[0]):.3f}")  # fmt: skip
    if settled:
        growth = (max(settled) - settled[0]) / settled[0]
        print(
            f"  resident memory after 10,000 tokens {settled[0]:.0f} MiB, "
            f"most later {max(settled):.0f} MiB: +{growth:.1%}"
        )


def tail_error(model, ids, record) -> float:
    """The largest difference of the last losses from those of a text that leaves out what they cannot see.

    What a token sees of the text, through all layers, are the sinks and the last layers x window tokens.
    """
    seen = model.config.num_hidden_layers * (CACHE - SINKS) + CACHE
    first = max(SINKS, ids.shape[-1] - LAST - seen)
    short = torch.cat([ids[..., :SINKS], ids[..., first:]], -1)
    again = sinkscope.perplexity(model, short, [sinkscope.SinkWindow(SINKS, CACHE - SINKS)], block=1000, progress=False)
    return float(abs(again.nll[0, 0, -LAST:].values - record.nll[0, 0, -LAST:].values).max())


if __name__ == "__main__":
    parts = {"losses": losses, "decode": decode, "collapse": collapse, "recompute": recompute, "split": split}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=[*parts, "long"])
    parser.add_argument("--tokens", type=int, default=65_536)
    chosen = parser.parse_args()
    if chosen.part == "long":
        long(chosen.tokens)
    else:
        for name, part in parts.items():
            if chosen.part in (None, name):
                part()

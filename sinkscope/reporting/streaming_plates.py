"""The figures of the streaming section, each saying which policy is which: readers mix up two of them."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from sinkscope import figures as draw
from sinkscope.analysis.table_records import table_of_record
from sinkscope.reporting.plate import Plate

POLICIES = (
    "Dense: a token sees all tokens before it, and the cache grows. Window: only the last L tokens are kept, with keys "
    "and values as they were computed; the first token is dropped. Recompute, sliding window with re-computation, is "
    "not that window: keys and values of the last L tokens are computed anew, from them alone, for every new token, so "
    "its first token is a first token again. Sinks S+W (StreamingLLM): the first S tokens stay beside the last W."
)


def ablation(record: xr.Dataset) -> Figure:
    return draw.ablation(table_of_record(record))


def decode_cost(record: xr.Dataset) -> Figure:
    return draw.decode_cost(table_of_record(record))


STREAMING: tuple[Plate, ...] = (
    Plate(
        "log_perplexity",
        "What happens when the first tokens leave the cache",
        draw.log_perplexity,
        ("perplexity",),
        ("nll",),
        f"Mean loss along one text under each policy. {POLICIES} Bands and bars are pointwise 95% block-bootstrap "
        "intervals. The dotted line is where the caches are full: before it nothing is evicted and all policies are "
        "equal. Re-computation is scored at a sample of tokens: its points are the nearest line plus the mean "
        "difference to it at those tokens.",
    ),
    Plate(
        "ablation",
        "How many sinks it takes",
        ablation,
        ("ablation",),
        ("ppl", "sinks", "cache_size"),
        "Perplexity of the same tokens with 0, 1, 2, .. first tokens kept as sinks, in a cache of the same total size; "
        "positions are counted in the cache or as in the text (original). Without sinks (0) it is the plain window, "
        "where keys and values stay as they were computed; nothing here is re-computed. Whiskers are 95% "
        "block-bootstrap intervals; the text is the same, so they overlap more than the differences are uncertain (the "
        "table has the paired ratios).",
    ),
    Plate(
        "decode_cost",
        "What a token costs",
        decode_cost,
        ("decode",),
        ("milliseconds", "kv_bytes"),
        "Measured: wall time of one more token with a full cache of L tokens (median and quartiles; policies take "
        "turns), and the memory that keys and values take. Window and sinks (sinks + window) evict one token and keep "
        "the rest, in an arena that holds up to 256 tokens more than it keeps, to move them in. Dense is the growing "
        "cache at a length of L. Recompute is the sliding window with re-computation: it runs the last L tokens afresh "
        "for each token, so its time grows with L as the others' hardly does. Times are of one machine (device and "
        "threads in the source line); StreamingLLM's Figure 10 has recompute and sinks on a GPU.",
    ),
)

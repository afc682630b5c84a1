"""The three streaming records with known contents, for the tests of the report: no model needed."""

from __future__ import annotations

import pandas as pd
import xarray as xr

from sinkscope.analysis.table_records import record_of_table, with_costs
from tests.analysis.losses import collapsing

SOURCE = {"model": "evil/<b>model</b>", "sinkscope": "0", "date": "2020-02-02", "text": "a & b"}


def costs() -> pd.DataFrame:
    """As `sinkscope.cost_table` makes them, of the policies of `collapsing`."""
    rows = [
        ("dense", 640, 640, 9.0e9, "O(T²)", 640 * 512, "O(T)"),
        ("window 64", 640, 65, 5.0e9, "O(T·L)", 64 * 512, "O(L)"),
        ("recompute 64", 640, 64, 3.0e11, "O(T·L²)", 64 * 512, "O(L)"),
        ("sinks 4+60", 640, 65, 5.0e9, "O(T·L)", 64 * 512, "O(L)"),
    ]
    columns = ["policy", "tokens", "attention_size", "flops_per_token", "complexity", "kv_bytes", "memory"]
    return pd.DataFrame(rows, columns=columns)


def ablation() -> pd.DataFrame:
    rows = [(n, n, 64, "cache", "first", ppl, 0.9 * ppl, 1.1 * ppl, ppl / 14.5, 0.5)
            for n, ppl in ((0, 140.0), (1, 15.0), (2, 14.75), (4, 14.5))]  # fmt: skip
    columns = ["cell", "sinks", "cache_size", "positions", "kind", "ppl", "low", "high", "ratio", "seconds"]
    table = pd.DataFrame(rows, columns=columns)
    table.attrs = {"kind": "ablation", **SOURCE}
    return table


def decode() -> pd.DataFrame:
    rows = [
        (name, size, ms, 0.9 * ms, 1.2 * ms, held * 512, size * 512, 1e9, 20)
        for size in (64, 128, 256)
        for name, ms, held in (
            ("dense", 20 + size / 50, size),
            ("window", 18 + size / 90, 2 * size),
            ("recompute", size * 1.5, size),
            ("sinks", 18.4 + size / 90, 2 * size + 8),
        )
    ]
    columns = ["policy", "cache_size", "milliseconds", "low", "high", "kv_bytes", "kv_bytes_kept", "flops_per_token",
               "samples"]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    table.attrs = {"kind": "decode", "threads": 2, "device": "cpu", **SOURCE}
    return table


def records() -> dict[str, xr.Dataset]:
    """Re-computation scored all of the first 64 tokens and 100 of the rest."""
    curve = collapsing(sequences=1, sampled=100)
    curve.attrs |= {"kind": "perplexity", **SOURCE, "sequences": 1, "tokens": 640}
    return {
        "perplexity": with_costs(curve, costs()),
        "ablation": record_of_table(ablation()),
        "decode": record_of_table(decode()),
    }

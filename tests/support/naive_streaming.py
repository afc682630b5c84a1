"""The three streaming records with known contents, for the tests of the report: no model needed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from sinkscope.analysis.ablation import ablation_table
from sinkscope.analysis.costs import with_costs
from sinkscope.policies import SinkWindow
from tests.support.loss_records import collapsing

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


PERPLEXITIES = {0: 140.0, 1: 15.0, 2: 14.75, 4: 14.5}  # by the number of sinks


def ablation_record() -> xr.Dataset:
    """As `sinkscope.run_ablation` makes it: losses about the logarithms of `PERPLEXITIES`."""
    noise = np.random.default_rng(0).normal(size=256)
    losses = np.stack([np.log(ppl) + 0.3 * (noise - noise[5:].mean()) for ppl in PERPLEXITIES.values()])[:, None]
    losses[:, :, :5] = np.nan
    counts, cells = np.array(list(PERPLEXITIES)), np.arange(len(PERPLEXITIES))
    policies = [SinkWindow(int(count), 64 - int(count)) for count in counts]
    known = [policy.coordinates for policy in policies]
    level = {"cell": cells, "sinks": counts, "cache_size": 64, "positions": "cache", "kind": "first"}
    return xr.Dataset(
        {"nll": (("policy", "sequence", "token"), losses.astype(np.float32), {"units": "nats"})},
        coords={
            "policy": [policy.name for policy in policies],
            "sequence": [0],
            "token": np.arange(256),
            "length": ("sequence", [256]),
            **{name: ("policy", [each[name] for each in known]) for name in known[0]},
            "seconds": ("policy", [0.5] * 4),
            "scored": ("policy", [251] * 4),
            "first_tokens": ("policy", ["first"] * 4),
            **{f"level_{name}": ("level", np.broadcast_to(values, 4).copy()) for name, values in level.items()},
        },
        attrs={"kind": "ablation", **SOURCE},
    )


def ablation() -> pd.DataFrame:
    return ablation_table(ablation_record())


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


def decode_record() -> xr.Dataset:
    """As `sinkscope.run_timing` makes it."""
    table = decode()
    columns = {str(name): ("cell", table[name].to_numpy()) for name in table.columns}
    return xr.Dataset(columns, attrs={**table.attrs, "columns": ", ".join(columns)})


def records() -> dict[str, xr.Dataset]:
    """Re-computation scored all of the first 64 tokens and 100 of the rest."""
    curve = collapsing(sequences=1, sampled=100)
    curve.attrs |= {"kind": "perplexity", **SOURCE, "sequences": 1, "tokens": 640}
    return {
        "perplexity": with_costs(curve, costs()),
        "ablation": ablation_record(),
        "decode": decode_record(),
    }

"""The table of the ways to attend to a long text: attention size, cost, memory, perplexity (Xiao et al. 2023, Fig. 1).

Both of its sources are tables with a column `policy`; neither the model nor a record is needed.
"""

from __future__ import annotations

import pandas as pd

from sinkscope.errors import SinkscopeError
from sinkscope.reporting.table_files import latex_text

COLUMNS = {
    "policy": "policy", "attention_size": "attention_size", "complexity": "cost", "flops_per_token": "flops_per_token",
    "memory": "kv_memory", "kv_megabytes": "kv_megabytes",
}  # fmt: skip
PERPLEXITY = ["policy", "ppl", "low", "high"]


def four_policies(costs: pd.DataFrame, perplexities: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per policy, in the order of `costs`.

    Args:
        costs: made by `sinkscope.cost_table`.
        perplexities: columns policy, ppl, low, high; policies without a row are left blank.

    Raises:
        SinkscopeError: a column is missing, a policy is there twice, or has a perplexity and no cost.
    """
    _check(costs, "costs", [name for name in COLUMNS if name != "kv_megabytes"] + ["kv_bytes"])
    table = costs.assign(kv_megabytes=costs["kv_bytes"] / 1e6)[list(COLUMNS)].rename(columns=COLUMNS)
    table.attrs = dict(costs.attrs)
    if perplexities is None:
        return table
    _check(perplexities, "perplexities", PERPLEXITY)
    unknown = set(perplexities["policy"]) - set(table["policy"])
    if unknown:
        raise SinkscopeError(
            f"{', '.join(sorted(unknown))} has a perplexity but no cost; "
            f"the costs are of {', '.join(table['policy'])}: give both the same policies."
        )
    joined = table.merge(perplexities[PERPLEXITY], on="policy", how="left", sort=False)
    joined.attrs = {**table.attrs, "cost_tokens": table.attrs.get("tokens"), **perplexities.attrs}
    return joined


def four_policies_latex(table: pd.DataFrame) -> str:
    """What `four_policies` made, as a booktabs table with its source in comments."""
    tokens = table.attrs.get("cost_tokens", table.attrs.get("tokens"))
    after = "" if tokens is None else f" after {tokens:,} tokens"
    caption = f"Ways to attend to a long text: attention size, cost and KV memory{after}, T tokens read, L kept"
    source = {str(key): value for key, value in table.attrs.items()}
    return latex_text(table, source, caption + (", and perplexity." if "ppl" in table else "."), "four-policies")


def _check(table: pd.DataFrame, name: str, columns: list[str]) -> None:
    missing = [column for column in columns if column not in table]
    if missing:
        raise SinkscopeError(f"{name} has no column {', '.join(missing)}; it needs {', '.join(columns)}.")
    twice = table["policy"][table["policy"].duplicated()]
    if len(twice):
        raise SinkscopeError(f"{name} has the policy {twice.iloc[0]!r} twice; give one row for each.")

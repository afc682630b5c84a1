"""Numbers of README, read from the records that are kept beside it."""

from __future__ import annotations

import re
from pathlib import Path

import sinkscope

ROOT = Path(__file__).parents[1]
README = re.sub(r"\s+", " ", (ROOT / "README.md").read_text(encoding="utf-8"))


def share(row) -> str:
    return f"{100 * row.share:.0f}% [{100 * row.low:.0f}, {100 * row.high:.0f}]".replace("-", "−")


def test_the_collapse_over_segments_is_that_of_its_losses():
    record = sinkscope.open_record(ROOT / "assets" / "collapse.nc")
    table, halves = sinkscope.collapse_table(record), sinkscope.factorial_table(record)
    assert table.attrs["bounds"] == "95% t intervals over 16 texts" and "Over 16 segments of 640 tokens" in README
    assert all(share(row) in README for row in halves.itertuples() if row.effect != "interaction")
    assert f"Their interaction is {share(halves.set_index('effect').loc['interaction'])}" in README
    told = {
        "window": "{:.2f} [{:.2f}, {:.2f}] times", "phantom, random values": "× {:.0f} [{:.0f}, {:.0f}]",
        "phantom, own direction, ordinary norm": "× {:.1f} [{:.1f}, {:.1f}]",
        "phantom, other direction, own norm": "× {:.2f} [{:.2f}, {:.2f}]",
        "phantom, values zeroed": "× {:.2f} [{:.2f}, {:.2f}]",
    }  # fmt: skip
    for part, words in told.items():
        ratio = table.set_index("part").loc[part, ["ratio", "ratio_low", "ratio_high"]]
        assert words.format(*ratio) in README, part

"""The pictures that README.md shows, drawn from the demo model reading the demo text: `make assets`."""

from __future__ import annotations

from pathlib import Path

import sinkscope
from sinkscope import figures

HERE = Path(__file__).parent
SHOWN = ("sink_mass_heatmap", "log_perplexity")


def main() -> None:
    report = sinkscope.report()
    for name in SHOWN:
        report.figures[name].savefig(HERE / f"{name}.png", dpi=200)
    grown = sinkscope.lab.bigram_backcopy()  # a quarter of an hour on two cores
    figures.emergence(grown).savefig(HERE / "emergence.png", dpi=130)
    print(report.headline)


if __name__ == "__main__":
    main()

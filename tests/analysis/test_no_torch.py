from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
import numpy
import sinkscope as analysis

record = analysis.from_maps(numpy.tril(numpy.ones((2, 2, 1, 9, 9))) / numpy.arange(1, 10)[:, None])
for metric in (analysis.sink_mass, analysis.importance, analysis.sink_rate, analysis.sink_rate_curve,
               analysis.mass_by_layer, analysis.discover):
    metric(record)
heavy = {"torch", "transformers", "matplotlib", "plotly"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.slow
def test_metrics_run_without_importing_torch():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

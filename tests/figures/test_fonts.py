"""The first run on a machine, when matplotlib lists its fonts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# matplotlib says it after five seconds; here at once.
AT_ONCE = """
import threading
later = threading.Timer
threading.Timer = lambda seconds, call, *rest: later(0, call, *rest)
import {module}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "is_said"),
    [("matplotlib.font_manager", True), ("sinkscope.figures", False), ("sinkscope.reporting.content", False)],
)
def test_the_first_run_on_a_machine_says_nothing_of_a_font_cache(module, is_said, tmp_path):
    environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path)}
    command = [sys.executable, "-c", AT_ONCE.format(module=module)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert ("building the font cache" in run.stderr) == is_said

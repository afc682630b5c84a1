"""Importing costs nothing until something is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sinkscope


def modules_after(code):
    lines = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules, sep='\\n')"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return set(lines.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import sinkscope",
        "import sinkscope; sinkscope.Report, sinkscope.open_record, sinkscope.sink_mass, sinkscope.from_maps",
        "import sinkscope.cli, sinkscope.figures, sinkscope.reporting.page",
    ],
)
def test_neither_torch_nor_transformers_is_imported(code):
    assert not {"torch", "transformers"} & modules_after(code)


@pytest.mark.slow
def test_every_public_name_is_there():
    for name in sinkscope.__all__:
        assert getattr(sinkscope, name) is not None
    assert set(sinkscope.__all__) <= set(dir(sinkscope))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sinkscope.nothing

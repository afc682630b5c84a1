"""The examples of the README run, in order, on the demo model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sinkscope import probes

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.demo
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_examples_of_the_readme_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 23
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["maps"].shape == (2, 9, 64, 64)
    assert 0.25 < float(names["mass"].mean()) < 0.45  # about a third, as the README says
    assert {"report.html", "manifest.json"} <= {path.name for path in (tmp_path / "my-report").iterdir()}
    assert (tmp_path / "mass_by_layer.pdf").stat().st_size > 5000
    assert names["app"].controller.model is None and names["files"][0].name == "view.pdf"  # closed, and saved before
    assert names["curve"].policy.values[-1] == "window 128"
    assert names["effects"].role.tolist() == ["baseline", "effect", "control", "effect", "control"]
    assert names["grown"].sizes["arm"] == 2 and len(names["heads"]) == 2 * 270
    assert names["cross"].received.shape == (1, 2, 4, 24) and names["cross"].attrs["stream"] == "cross"
    assert names["swept"].policy.tolist() == ["dense", "sinks 1+127", "sinks 4+124", "window 128"]
    assert names["twice"].sizes["distance"] == 2
    assert names["own"].policy.item().startswith("Milestones(") and names["out"].shape == (1, 108)
    assert names["table"].sinks.tolist() == [0, 1, 4] and names["lse"].shape == (1, 9, 1)
    assert "0.0" in capsys.readouterr().out.splitlines()  # uniform attention has no sinks


def test_the_table_of_probes_has_every_probe_with_the_variables_it_declares():
    text = README.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)\(.*?\)` \| (.*?) \| .* \|$", text, re.MULTILINE)
    listed = {name: set(re.findall(r"`([a-z_]+)`", words)) for name, words in rows if hasattr(probes, name)}
    made = {name: set(getattr(probes, name).makes) for name in probes.__all__ if getattr(probes, name) in concrete()}
    for shared in ("output_norm",):  # listed once, with the probe that makes nothing else
        made["EvictionEffect"].discard(shared)
    assert listed == made


def concrete():
    return [each for each in probes.probe_classes() if each.makes and each.__module__.startswith("sinkscope.")]

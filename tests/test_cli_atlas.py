"""`sinkscope atlas` and `sinkscope report A B`, on saved reports."""

from __future__ import annotations

import sys

import pytest

from sinkscope import Report, cli
from tests.reporting.test_atlas import records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    reports = {name: Report(records(f"a/{name}", seed)) for seed, name in enumerate("xy")}
    return [str(report.save(folder / name, prints=False, progress=False)) for name, report in reports.items()]


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["sinkscope", *map(str, words)])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return leaving.value.code, *capsys.readouterr()


def test_an_atlas_of_saved_reports_is_a_page_and_a_table(monkeypatch, capsys, saved, tmp_path):
    code, said, _ = call(monkeypatch, capsys, "atlas", *saved, "--out", tmp_path / "atlas")
    assert code == 0 and "2 models" in said and "a/x" in said and "a/y" in said
    assert (tmp_path / "atlas/report.html").is_file() and (tmp_path / "atlas/tables/atlas.csv").is_file()


def test_two_reports_are_told_apart_and_anything_else_is_refused_in_a_line(monkeypatch, capsys, saved, tmp_path):
    code, said, _ = call(monkeypatch, capsys, "report", *saved)
    assert code == 0 and "mass on the first token" in said and "perplexity, dense" in said
    code, said, err = call(monkeypatch, capsys, "report", saved[0], tmp_path / "nowhere")
    assert (code, said) == (2, "") and "is no report: give two folders" in err and err.count("\n") == 1
    code, said, err = call(monkeypatch, capsys, "report", *saved, "--length", "64")
    assert (code, said) == (2, "") and "Nothing is measured between the two saved reports" in err

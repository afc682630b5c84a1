"""Saving: whole or not at all, over nobody else's files, and enough to draw everything again without the model."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from sinkscope.analysis.compare import compare
from sinkscope.directories import check_directory
from sinkscope.errors import SinkscopeError
from sinkscope.record import save_record
from sinkscope.reporting import saving
from sinkscope.reporting.document import Report
from tests.support import naive_record, naive_streaming


def small() -> Report:
    return Report(naive_record.norms_only())


def full() -> Report:
    return Report({"text": naive_record.record(), "short": naive_record.record(), **naive_streaming.records()})


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return full().save(tmp_path_factory.mktemp("reports") / "full", progress=False)


@pytest.mark.slow
def test_everything_is_written_and_listed_with_its_hash(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    there = files(saved)
    assert set(manifest["files"]) == set(there) - {"manifest.json"}
    for name, entry in manifest["files"].items():
        assert hashlib.sha256(there[name]).hexdigest() == entry["sha256"]
    report = Report.open(saved)
    expected = {f"figures/{name}.{kind}" for name in report.figures for kind in ("pdf", "svg", "png")}
    expected |= {f"tables/{name}.{kind}" for name in report.tables for kind in ("csv", "tex")}
    expected |= {f"records/{name}.nc" for name in ("text", "short", "perplexity", "ablation", "decode")}
    expected |= {"report.html"}
    assert {"figures/log_perplexity.pdf", "figures/decode_cost.pdf", "tables/four_policies.tex"} <= expected
    assert set(manifest["files"]) == expected
    assert manifest["provenance"]["text"]["model"] == "evil/<b>model</b>"
    assert [p.name for p in saved.parent.iterdir()] == ["full"]


@pytest.mark.slow
def test_provenance_is_in_every_file(saved):
    for name, content in files(saved).items():
        if name.endswith((".csv", ".tex", ".svg", ".html", ".json")):
            text = content.decode()
            assert "2020-02-02" in text and ("evil/<b>model" in text or "evil/&lt;b&gt;model" in text), name
        if name.endswith((".pdf", ".png")):
            assert b"2020-02-02" in content, name
    for name in ("text", "short", "perplexity", "ablation", "decode"):
        with xr.open_dataset(saved / f"records/{name}.nc", engine="h5netcdf") as record:
            assert record.attrs["date"] == "2020-02-02"


@pytest.mark.slow
def test_open_draws_the_same_without_torch_or_transformers(saved):
    code = (
        "import sys; from sinkscope import Report; report = Report.open(sys.argv[1]);"
        "print(report.headline); [report.figures[name] for name in report.figures];"
        "[report.tables[name] for name in report.tables]; report._repr_html_();"
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code, saved], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == full().headline


@pytest.mark.slow
def test_a_saved_and_opened_report_saves_to_the_same_bytes(tmp_path):
    small().save(tmp_path / "a")
    Report.open(tmp_path / "a").save(tmp_path / "b")
    first, second = files(tmp_path / "a"), files(tmp_path / "b")
    for name in first:
        if not name.endswith(".nc") and name != "manifest.json":
            assert first[name] == second[name], name
    xr.testing.assert_identical(
        Report.open(tmp_path / "a").records["text"], Report.open(tmp_path / "b").records["text"]
    )


@pytest.mark.slow
def test_the_streaming_tables_and_figures_are_the_same_from_the_saved_records(saved):
    first, second = full(), Report.open(saved)
    for name in ("four_policies", "perplexity", "ablation", "decode_cost", "summary"):
        pd.testing.assert_frame_equal(first.tables[name], second.tables[name])
    for name in ("log_perplexity", "ablation", "decode_cost"):
        drawn = [io.BytesIO(), io.BytesIO()]
        for target, report in zip(drawn, (first, second), strict=True):
            report.figures[name].savefig(target, format="png", metadata={"Description": ""})
        assert drawn[0].getvalue() == drawn[1].getvalue(), name


@pytest.mark.slow
def test_an_earlier_report_is_replaced_and_an_empty_directory_filled(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    small().save(out)
    Report(naive_record.norms_only().isel(layer=[0])).save(out)
    assert Report.open(out).records["text"].sizes["layer"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize("foreign", ["thesis.tex", "figures/mine.pdf", "notes/", ".hidden"])
def test_a_foreign_file_is_named_and_left_alone(tmp_path, foreign):
    out = small().save(tmp_path / "out")
    place = out / foreign
    place.mkdir() if foreign.endswith("/") else place.write_text("mine")
    before = files(out)
    for attempt in (lambda: check_directory(out), lambda: small().save(out)):
        with pytest.raises(SinkscopeError, match=foreign.rstrip("/")):
            attempt()
    assert files(out) == before and place.exists()


def test_a_manifest_of_something_else_does_not_make_a_report(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "a web page", "files": {"manifest.json": 1}}')
    with pytest.raises(SinkscopeError, match=r"holds manifest\.json, which does not prove"):
        check_directory(tmp_path)
    with pytest.raises(SinkscopeError, match="not a saved report"):
        Report.open(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["_records", "_figure", "_table", "_page", "write_manifest"])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_the_old_report_and_nothing_else(tmp_path, monkeypatch, step, fault):
    out = tmp_path / "deep" / "out"
    fresh = tmp_path / "new" / "deeper" / "out"
    small().save(out)
    before = files(tmp_path)

    def fail(*_):
        raise fault

    monkeypatch.setattr(saving, step, fail)
    for target in (out, fresh):
        with pytest.raises(SinkscopeError if isinstance(fault, OSError) else KeyboardInterrupt) as caught:
            small().save(target)
        if isinstance(fault, OSError):
            assert "No space left" in str(caught.value) and str(target) in str(caught.value)
    assert files(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_failing_rename_brings_the_old_report_back(tmp_path, monkeypatch):
    import os

    out = small().save(tmp_path / "out")
    before, rename = files(tmp_path), os.rename

    def fail(source, target):
        if Path(target) == out and "partial" in str(source):
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(SinkscopeError, match="Input/output error"):
        small().save(out)
    assert files(tmp_path) == before


def test_places_that_cannot_be_directories_are_refused_before_any_work(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(SinkscopeError, match="is a file"):
        check_directory(file)
    with pytest.raises(SinkscopeError, match="file"):
        check_directory(file / "below")
    with pytest.raises(SinkscopeError, match="cannot write"):
        check_directory("/proc/nowhere/report")
    check_directory(tmp_path / "not" / "yet" / "there")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_directory_without_permission_is_a_clear_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SinkscopeError, match="Permission denied"):
        check_directory(tmp_path / "out")


@pytest.mark.slow
def test_a_damaged_record_is_a_clear_error(tmp_path):
    out = small().save(tmp_path / "out")
    record = out / "records" / "text.nc"
    record.write_bytes(record.read_bytes()[:200])
    with pytest.raises(SinkscopeError, match=r"text\.nc"):
        Report.open(out)
    with pytest.raises(SinkscopeError, match="nowhere"):
        Report.open(tmp_path / "nowhere")


@pytest.mark.slow
def test_notes_survive_saving(tmp_path):
    record = naive_record.norms_only()
    record.attrs["notes"] = "one thing\nanother"
    out = Report(record).save(tmp_path / "out")
    assert Report.open(out).notes == ["one thing", "another"]
    assert "one thing" in (out / "report.html").read_text()
    assert np.array_equal(Report.open(out).records["text"].key_norm, record.key_norm)


@pytest.mark.slow
def test_a_record_edited_since_is_refused_by_its_name_and_another_file_is_said(saved, tmp_path):
    out = shutil.copytree(saved, tmp_path / "out")
    edited = Report.open(out).records["text"]
    edited["sink_mass"][:] = 0.99
    (out / "records/text.nc").unlink()
    save_record(edited, out / "records/text.nc")  # with a right checksum of its own
    with pytest.raises(SinkscopeError, match=r"records/text\.nc was changed since the report was saved"):
        Report.open(out)
    with pytest.raises(SinkscopeError, match=r"records/text\.nc was changed since the report was saved"):
        compare([out])
    again = shutil.copytree(saved, tmp_path / "again")
    (again / "tables/summary.csv").write_text("edited")
    with pytest.warns(UserWarning, match=r"tables/summary\.csv was changed since"):
        Report.open(again)


@pytest.mark.slow
def test_a_report_hidden_by_a_cut_off_save_is_opened(tmp_path):
    out = small().save(tmp_path / "out")
    out.rename(tmp_path / f".out.old-{'0' * 32}")
    with pytest.warns(UserWarning, match="the report that was there is back"):
        Report.open(out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_name_with_line_breaks_stays_on_its_line_in_every_file(tmp_path):
    plain, evil = naive_record.norms_only(), naive_record.norms_only()
    evil.attrs["model"] = "a\n\\input{x}\r\x0b\x0c\x85\u2028]]>--><script>alert(1)</script>\u202e\0=1"
    one, other = (Report(record).save(tmp_path / str(number)) for number, record in enumerate((plain, evil)))
    assert files(one).keys() == files(other).keys()
    for name, content in files(other).items():
        if name.endswith((".svg", ".tex", ".csv", ".html", ".json")):
            text = content.decode()
            if not name.endswith(".svg"):  # where each letter of the name is a few lines
                assert len(text.splitlines()) == len(files(one)[name].decode().splitlines()), name
            assert not set(text) & set("\x0b\x0c\x85\u2028\u202e\0"), name
        if name.endswith(".svg"):
            assert not [each for each in ElementTree.fromstring(content).iter() if str(each.tag).endswith("script")]
        if name.endswith(".html"):
            assert "alert(1)</script>" not in content.decode().partition('id="plotly"')[0]

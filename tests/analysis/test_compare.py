"""Several models side by side, against records with known contents."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import sinkscope
from sinkscope.analysis.compare import compare
from sinkscope.errors import SinkscopeError
from sinkscope.reporting.document import Report
from tests.support.loss_records import collapsing, loss_record
from tests.support.synthetic import synthetic_maps, synthetic_record


def captured(model: str = "one/model", tokens: int = 48, seed: int = 0, **attributes: str) -> xr.Dataset:
    record = synthetic_record(3, 3, 2, tokens, seed=seed)
    return record.assign_attrs(model=model, sinkscope="0", date="2020-02-02", **attributes)


def streamed(model: str = "one/model", **options) -> xr.Dataset:
    return collapsing(**options).assign_attrs(model=model, sinkscope="0", date="2020-02-03", text="a text")


@pytest.fixture(scope="module")
def pairs() -> list[tuple[xr.Dataset, xr.Dataset]]:
    return [(captured(), streamed()), (captured("two/other", seed=1), streamed("two/other", seed=1))]


@pytest.mark.slow
def test_strength_and_collapse_are_those_of_the_maps_and_the_losses(pairs):
    table = compare(pairs)
    assert list(table["model"]) == ["model", "other"]
    for row, seed in zip(table.to_dict("records"), (0, 1), strict=True):
        maps = synthetic_maps(3, 3, 2, 48, seed=seed)
        assert row["sink_rate"] == pytest.approx((maps[..., 0].mean(-1) > 0.3).mean())
        each = maps[..., 1:, 0].mean((1, 2, 3))
        assert row["sink_mass"] == pytest.approx(each.mean(), rel=1e-5)
        bounds = stats.t.interval(0.95, 2, each.mean(), stats.sem(each))
        np.testing.assert_allclose([row["mass_low"], row["mass_high"]], bounds, rtol=1e-4)
        assert row["mass_null"] == pytest.approx(np.mean([1 / (i + 1) for i in range(1, 48)]))
        assert row["rate_null"] == 0 and np.isnan([row["rate_low"], row["rate_high"]]).all()  # of three texts
        late = streamed(seed=seed)["nll"].values[:, :, 66:].astype(float)
        assert row["collapse"] == pytest.approx(np.exp(late[1].mean() - late[3].mean()), rel=1e-6)
        assert row["collapse_low"] < row["collapse"] < row["collapse_high"]
        assert (row["T"], row["sequences"], row["bos"]) == (48, 3, "yes")
        assert (row["cache_size"], row["sinks"], row["read"], row["tokens"]) == (64, 4, 640, 2 * (640 - 66))
    assert set(table["differs"]) == {""}
    assert table.attrs["epsilon"] == 0.3 and table.attrs["text"] == "a text" and table.attrs["date"] == "2020-02-03"


@pytest.mark.slow
def test_all_are_cut_to_the_shortest_text_and_what_else_differs_is_named(pairs):
    longer = captured("a/longer", tokens=64, bos="no"), streamed("a/longer", tokens=900)
    table = compare([*pairs, longer])
    assert list(table["T"]) == [48] * 3 and list(table["read"]) == [640] * 3
    maps = synthetic_maps(3, 3, 2, 64)[:, :, :, :48, 0]
    assert table["sink_mass"].iloc[2] == pytest.approx(maps[..., 1:].mean(), rel=1e-5)
    assert table["sink_rate"].iloc[2] == pytest.approx((maps.mean(-1) > 0.3).mean())
    late = streamed(tokens=900)["nll"].values[:, :, 66:640].astype(float)
    assert table["collapse"].iloc[2] == pytest.approx(np.exp(late[1].mean() - late[3].mean()), rel=1e-6)
    assert table["differs"].tolist() == ["", "", "bos"]
    assert list(compare(pairs, length=16)["T"]) == [16, 16]


def test_another_cache_size_is_named_and_not_hidden(pairs):
    other = streamed("a/small").assign_coords(cache_size=("policy", [-1, 32, 32, 32]))
    table = compare([pairs[0], (captured("a/small"), other.assign_attrs(text="a play"))])
    assert table["cache_size"].tolist() == [64, 32]
    assert table["differs"].tolist() == ["", "cache_size, tokens, text"]


@pytest.mark.slow
def test_folders_of_saved_reports_give_what_their_records_give(pairs, tmp_path):
    for name, (record, curve) in zip("ab", pairs, strict=True):
        folder = tmp_path / name / "records"
        folder.mkdir(parents=True)
        sinkscope.save_record(record, folder / "text.nc")
        sinkscope.save_record(curve, folder / "perplexity.nc")
    from_folders = compare([tmp_path / "a", str(tmp_path / "b")])
    from_files = compare(
        [[tmp_path / name / "records" / file for file in ("text.nc", "perplexity.nc")] for name in "ab"]
    )
    for found in (from_folders, from_files):
        assert found.equals(compare(pairs))


@pytest.mark.slow
def test_what_a_report_saves_can_be_compared(tmp_path):
    small = captured()[["sink_mass"]]
    out = Report({"text": small, "perplexity": streamed()}).save(tmp_path / "out", progress=False)
    assert compare([out])["model"].tolist() == ["model"]


@pytest.mark.slow
def test_a_folder_without_records_and_a_report_without_losses_are_refused(tmp_path):
    with pytest.raises(SinkscopeError, match="holds no record of a report"):
        compare([tmp_path])
    with pytest.raises(SinkscopeError, match="holds no record of a report"):
        compare([tmp_path / "nowhere"])
    (tmp_path / "records").mkdir()
    sinkscope.save_record(captured(), tmp_path / "records" / "text.nc")
    with pytest.raises(SinkscopeError, match=r"without losses.*--no-streaming.*perplexity\.nc is not there"):
        compare([tmp_path])
    (tmp_path / "records" / "perplexity.nc").write_bytes(b"nothing")
    with pytest.raises(SinkscopeError, match="not a record of sinkscope"):
        compare([tmp_path])


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ([], "nothing to compare"),
        ("report", "put it in brackets"),
        ([captured()], "no saved report"),
        ([(captured(), streamed(), streamed())], "no saved report"),
        ([(captured().drop_vars("sink_mass"), streamed())], "no sink_mass"),
        ([(captured(), captured())], "no nll"),
        ([(captured(), streamed("two/other"))], "sinks of model and losses of other"),
        ([(captured().assign_attrs(causal=0), streamed())], "encoder"),
        ([(captured(), streamed().isel(policy=[0, 1]))], "no window and sinks"),
        ([(captured(), streamed(tokens=66))], "no token of model below 66"),
        ([(captured(), streamed().drop_vars("sinks"))], "does not say what its policies do: sinks is missing"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(saved, words):
    with pytest.raises(SinkscopeError, match=words):
        compare(saved)


def test_phantom_sinks_are_not_taken_for_sinks():
    names = ["window 64", "sinks 4+60"]
    curve = loss_record(streamed()["nll"].values[[1, 3]], names).assign_attrs(model="one/model", text="a text")
    odd = curve.assign_coords(sink_values=("policy", ["kept", "zeroed"]))
    with pytest.raises(SinkscopeError, match="no window and sinks"):
        compare([(captured(), odd)])


@pytest.mark.slow
def test_comparing_needs_no_torch(tmp_path):
    (tmp_path / "records").mkdir()
    sinkscope.save_record(captured(), tmp_path / "records" / "text.nc")
    sinkscope.save_record(streamed(), tmp_path / "records" / "perplexity.nc")
    code = (
        "import sys, sinkscope; from sinkscope import figures; figures.comparison(sinkscope.compare([sys.argv[1]]));"
        "assert not {'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)

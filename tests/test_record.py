"""Records on disk."""

from __future__ import annotations

import errno
import os

import pytest
import torch
import xarray as xr

from sinkscope import ALL, SinkscopeError, measure, open_record, save_record
from tests.core.test_measure import Speller
from tests.support.zoo import build, inputs


@pytest.fixture(scope="module")
def record():
    return measure(build("llama"), list(inputs("llama")["input_ids"]), ALL, tokenizer=Speller(), text="ĞŁ™ <b>\n")


def test_a_record_comes_back_as_it_was(record, tmp_path):
    opened = open_record(save_record(record, tmp_path / "record.nc"))
    shown = record.assign_coords(
        token_text=(
            record.token_text.dims,
            [[t.replace("\0", "\u2400") for t in row] for row in record.token_text.values],
        )
    )
    xr.testing.assert_identical(opened, shown)
    assert sorted(os.listdir(tmp_path)) == ["record.nc"]


def test_a_full_disk_leaves_the_old_record_alone(record, tmp_path, monkeypatch):
    path = save_record(record, tmp_path / "record.nc")
    before = path.read_bytes()

    def full(self, target, **_):
        with open(target, "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    with pytest.raises(SinkscopeError, match="No space left on device"):
        save_record(record, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["record.nc"]


def test_places_that_cannot_be_written_or_read(record, tmp_path):
    with pytest.raises(SinkscopeError, match="cannot write"):
        save_record(record, tmp_path / "nowhere" / "record.nc")
    with pytest.raises(SinkscopeError, match="no record at"):
        open_record(tmp_path / "record.nc")
    (tmp_path / "torn.nc").write_bytes(save_record(record, tmp_path / "whole.nc").read_bytes()[:5000])
    with pytest.raises(SinkscopeError, match="damaged"):
        open_record(tmp_path / "torn.nc")
    xr.Dataset({"rain": ("day", [1.0])}).to_netcdf(tmp_path / "rain.nc", engine="h5netcdf")
    with pytest.raises(SinkscopeError, match="not a record"):
        open_record(tmp_path / "rain.nc")


def test_an_encoder_without_token_ids_is_saved_too(tmp_path):
    from sinkscope import capture

    model, given = build("vit"), inputs("vit")
    with torch.no_grad(), capture(model) as scope:
        model(**given)
    xr.testing.assert_identical(open_record(save_record(scope.record, tmp_path / "vit.nc")), scope.record)


def test_attributes_of_any_kind_are_kept_as_plain_ones(record, tmp_path):
    odd = record.assign_attrs(shuffled=True, note="a\0b \ud800", nothing=None)
    odd.sink_mass.attrs["units"] = None
    opened = open_record(save_record(odd, tmp_path / "record.nc"))
    assert opened.attrs["shuffled"] == 1 and opened.attrs["note"] == "a\u2400b ?" and opened.attrs["nothing"] == "None"


@pytest.mark.slow
def test_a_record_damaged_anywhere_is_refused_or_read_but_never_a_traceback(record, tmp_path):
    whole = save_record(record, tmp_path / "whole.nc").read_bytes()
    refused = 0
    for place in range(0, len(whole), len(whole) // 60):
        (tmp_path / "damaged.nc").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) * 8 + whole[place + 8 :])
        try:
            open_record(tmp_path / "damaged.nc")
        except SinkscopeError:
            refused += 1
    assert refused > 0

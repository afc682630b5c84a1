"""Records on disk."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray as xr

import sinkscope.record as module
from sinkscope import ALL, SinkscopeError, measure, open_record, save_record
from sinkscope.seals import line_length, sealed
from tests.core.test_measure import Speller
from tests.support.zoo import build, inputs


@pytest.fixture(scope="module")
def record():
    return measure(build("llama"), list(inputs("llama")["input_ids"]), ALL, tokenizer=Speller(), text="ĞŁ™ <b>\n")


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["_FillValue", "missing_value", "scale_factor", "add_offset"])
def test_an_attribute_by_which_numbers_would_be_read_as_others_is_refused(record, tmp_path, name):
    value = float(record.sink_mass.values.flat[0])
    marked = record.assign(sink_mass=record.sink_mass.assign_attrs({name: value}))
    with pytest.raises(SinkscopeError, match=f"'sink_mass' has the attribute '{name}'"):
        save_record(marked, tmp_path / "record.nc")
    assert not list(tmp_path.iterdir())


def test_what_would_be_lost_or_could_not_be_read_again_is_refused(record, tmp_path):
    lost = [record.assign_attrs(coordinates="sink_mass"), record.assign_attrs({"a\0b": 1})]
    for each in (*lost, record.assign(sink_mass=record.sink_mass * 1j)):
        with pytest.raises(SinkscopeError, match=r"would be lost|holds complex numbers"):
            save_record(each, tmp_path / "record.nc")


@pytest.mark.slow
def test_names_without_a_character_are_kept_as_they_can_be(record, tmp_path):
    named = record.assign_coords(called=("sequence", ["a\0b", "c\ud800"]))
    assert open_record(save_record(named, tmp_path / "record.nc")).called.values.tolist() == ["a\u2400b", "c?"]


@pytest.mark.slow
def test_other_readers_of_netcdf_open_it_as_any_file(record, tmp_path):
    path = save_record(record, tmp_path / "record.nc")
    for given in (path, io.BytesIO(path.read_bytes())):
        with xr.open_dataset(given, engine="h5netcdf") as opened:
            assert opened.identical(open_record(path))
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["sink_mass"][()], record.sink_mass)


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np, xarray as xr
from sinkscope import SinkscopeError, open_record, save_record
def record(value):
    losses = np.full((2, 4096), value) * np.arange(4096)
    return xr.Dataset({"nll": (("policy", "token"), losses)}, attrs={"kind": "perplexity"})
path = save_record(record(1.5), Path(sys.argv[1]) / "record.nc")
before, hard = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
for size in [*range(0, len(before), len(before) // 40), len(before) - 1]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        save_record(record(2.5), path)
    except SinkscopeError as problem:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        print(problem)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert float(open_record(save_record(record(2.5), path)).nll[0, 1]) == 2.5
"""


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_byte_is_one_sentence_and_leaves_the_old_record_alone(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert len(said) >= 40
    assert set(said) == {f"cannot write the record to {tmp_path / 'record.nc'}: File too large."}


@pytest.mark.slow
def test_places_that_cannot_be_written_or_read(record, tmp_path):
    with pytest.raises(SinkscopeError, match="cannot write"):
        save_record(record, tmp_path / "nowhere" / "record.nc")
    for path, words in [
        ("record.nc", "no record at"),
        ("a" * 5000, "cannot read"),
        ("a\0b", "no record at|cannot read|names no file"),
    ]:
        with pytest.raises(SinkscopeError, match=words) as refused:
            open_record(tmp_path / path)
        assert "\n" not in str(refused.value)
    for path in ("a" * 5000, "a\0b"):
        with pytest.raises(SinkscopeError, match=r"cannot write|names no file"):
            save_record(record, tmp_path / path)
    os.mkfifo(tmp_path / "pipe")  # as a device: a file renamed to its name would take its place
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(SinkscopeError, match="is there already and is no file"):
            save_record(record, path)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.slow
def test_a_file_that_is_no_record_is_neither_read_nor_replaced(record, tmp_path):
    xr.Dataset({"rain": ("day", [1.0])}).to_netcdf(tmp_path / "rain.nc", engine="h5netcdf")
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "torn.nc").write_bytes(save_record(record, tmp_path / "whole.nc").read_bytes()[:5000])
    for name in ("rain.nc", "thesis.tex", "torn.nc"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(SinkscopeError, match=r"the checksum that `save_record` puts at its end is not there"):
            open_record(tmp_path / name)
        with pytest.raises(SinkscopeError, match=r"no whole record.*give another name"):
            save_record(record, tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    (tmp_path / "empty.nc").touch()
    open_record(save_record(record, tmp_path / "empty.nc"))
    rain = save_record(xr.Dataset({"rain": ("day", [1.0])}), tmp_path / "checked.nc")
    with pytest.raises(SinkscopeError, match="no layers, policies or lengths"):
        open_record(rain)


@pytest.mark.parametrize(
    ("made", "words"),
    [(lambda: object(), "record=<object .* is not a record"),
     (lambda: xr.Dataset({"nll": ("policy", np.array([object()]))}), "cannot be stored as NetCDF"),
     (lambda: xr.Dataset({"a/b": ("policy", [1.0])}), "cannot be stored as NetCDF")],
)  # fmt: skip
def test_what_cannot_be_stored_is_a_sentence(tmp_path, made, words):
    with pytest.raises(SinkscopeError, match=words):
        save_record(made(), tmp_path / "record.nc")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_encoder_without_token_ids_is_saved_too(tmp_path):
    from sinkscope import capture

    model, given = build("vit"), inputs("vit")
    with torch.no_grad(), capture(model) as scope:
        model(**given)
    xr.testing.assert_identical(open_record(save_record(scope.record, tmp_path / "vit.nc")), scope.record)


@pytest.mark.slow
def test_attributes_of_any_kind_are_kept_as_plain_ones(record, tmp_path):
    odd = record.assign_attrs(shuffled=True, seed=10**30, note="a\0b \ud800", nothing=None)
    odd.sink_mass.attrs["units"] = None
    opened = open_record(save_record(odd, tmp_path / "record.nc"))
    assert opened.attrs["seed"] == str(10**30)
    assert opened.attrs["shuffled"] == 1 and opened.attrs["note"] == "a\u2400b ?" and opened.attrs["nothing"] == "None"


@pytest.mark.slow
def test_every_changed_byte_is_found_before_hdf5_sees_it(record, tmp_path, monkeypatch):
    whole = save_record(record, tmp_path / "whole.nc").read_bytes()
    monkeypatch.setattr(module, "try_hdf5", lambda *_: pytest.fail("HDF5 saw it"))
    random = np.random.default_rng(0)
    for place in [*range(0, len(whole), len(whole) // 150), *range(len(whole) - line_length(".nc"), len(whole))]:
        flipped = bytes([whole[place] ^ int(random.integers(1, 256))])
        for damaged in (
            whole[:place] + flipped + whole[place + 1 :],
            whole[:place],
            whole[:place] + whole[place + 1 :],
        ):
            (tmp_path / "damaged.nc").write_bytes(damaged)
            with pytest.raises(SinkscopeError, match="damaged"):
                open_record(tmp_path / "damaged.nc")


def checked(data: bytes, path: Path) -> Path:
    """A file with the checksum of a record, made by someone who knows how."""
    path.write_bytes(sealed(data, ".nc"))
    return path


def hdf5(fill) -> bytes:
    target = io.BytesIO()
    with h5py.File(target, "w") as file:
        fill(file)
    return target.getvalue()


def a_bomb(file):
    made = file.create_dataset("zeros", (2**33,), dtype="u1", chunks=(2**29,), compression="gzip")
    made.id.write_direct_chunk((0,), zlib.compress(bytes(2**20)))


def a_chunk_that_unpacks_to_more(file):
    made = file.create_dataset("zeros", (2**10,), dtype="u1", chunks=(2**10,), compression="gzip")
    packed = zlib.compressobj(9)
    made.id.write_direct_chunk((0,), b"".join([*(packed.compress(bytes(2**24)) for _ in range(32)), packed.flush()]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fill", "words"),
    [(a_bomb, "takes more than 1,000,000,000 bytes"),
     (lambda file: file.create_dataset("zeros", (2**31,), dtype="u1"), "takes more than 1,000,000,000 bytes"),
     (a_chunk_that_unpacks_to_more, "unpack|memory|read data"),
     (lambda file: file.create_dataset("file", (4,), "u1", external=[("/etc/hostname", 0, 4)]), "stored as no record"),
     (lambda file: file.__setitem__("file", h5py.ExternalLink("/etc/hostname", "/")), "link to elsewhere"),
     (lambda file: file.create_group("group"), "holds a group")],
)  # fmt: skip
def test_a_hostile_file_with_a_right_checksum_is_refused_in_bounds(tmp_path, fill, words):
    path = checked(hdf5(fill), tmp_path / "hostile.nc")
    with pytest.raises(SinkscopeError, match=words):
        open_record(path, max_memory=10**9)


@pytest.mark.slow
def test_a_file_larger_than_the_memory_given_is_not_read(record, tmp_path):
    path = save_record(record, tmp_path / "record.nc")
    with pytest.raises(SinkscopeError, match=r"bytes long, and max_memory is 1,000"):
        open_record(path, max_memory=1000)
    with (tmp_path / "sparse.nc").open("wb") as file:
        file.truncate(10 * 2**30)
    with pytest.raises(SinkscopeError, match="not a record"):
        open_record(tmp_path / "sparse.nc")


@pytest.mark.parametrize(
    "attributes",
    [
        {"units": "days since 2000-01-01"},
        {"units": "hours", "dtype": "timedelta64[ns]"},
        {"dtype": "bool"},
        {"_Encoding": "utf-8"},
        {"_FillValue": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["sink_mass", "length"])
def test_attributes_that_would_have_values_read_as_others_are_refused(record, tmp_path, attributes, name):
    changed = record.copy()
    changed[name] = changed[name].assign_attrs(attributes)
    with pytest.raises(SinkscopeError, match=f"'{name}' has the attribute .*, by which its values would be read as"):
        save_record(changed, tmp_path / "record.nc")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["_nc4_non_coord_x", "two words", "two\nlines"])
def test_names_of_coordinates_that_would_be_lost_are_refused(record, tmp_path, name):
    with pytest.raises(SinkscopeError, match="is a name that NetCDF takes for something else"):
        save_record(record.assign_coords({name: ("layer", record.layer.values * 0.5)}), tmp_path / "record.nc")


@pytest.mark.slow
def test_times_come_back_as_times(record, tmp_path):
    timed = record.assign_coords(when=("layer", np.array(["2026-01-01", "2026-01-02"], "datetime64[ns]")))
    assert (open_record(save_record(timed, tmp_path / "record.nc")).when == timed.when).all()

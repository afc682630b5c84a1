"""Cells that are finished are kept and not run again, however often a sweep is interrupted."""

from __future__ import annotations

import os
import shutil

import pandas as pd
import pytest
import torch

from sinkscope import Grid, SinkWindow, ablate, compare, compare_cells, list_cells, sweep, sweep_table
from sinkscope.errors import SinkscopeError
from sinkscope.experiments.cells import RecordCell
from sinkscope.streaming import checkpoint
from sinkscope.texts import text_name
from tests.experiments.ablating import EXACT, Interrupted
from tests.support.tokenizers import byte_level

SIX = dict(sinks=(0, 1, 2, 4, 6, 8), cache_size=16)  # six cells


@pytest.mark.slow
def test_finished_cells_are_not_run_again(model, ids, forwards, tmp_path):
    first = ablate(model, ids, **SIX, folder=tmp_path, resamples=20)
    assert forwards.count == 6 and len(list(tmp_path.iterdir())) == 6
    again = ablate(model, ids, **SIX, folder=tmp_path, resamples=20)
    assert forwards.count == 6
    pd.testing.assert_frame_equal(first, again)  # the time they took, too
    ablate(model, ids, **(SIX | dict(sinks=(0, 8, 10))), folder=tmp_path, seed=9, resamples=20)
    assert forwards.count == 7 and len(list(tmp_path.iterdir())) == 7


@pytest.mark.slow
def test_other_tokens_weights_or_blocks_make_other_cells(model, ids, forwards, tmp_path):
    ablate(model, ids, **SIX, folder=tmp_path, resamples=20)
    ablate(model, ids + 1, **SIX, folder=tmp_path, resamples=20)
    ablate(model, ids, **SIX, folder=tmp_path, resamples=20, block=89)
    with torch.no_grad():
        model.lm_head.weight *= 1.5
    ablate(model, ids, **SIX, folder=tmp_path, resamples=20)
    assert forwards.count == 24 == len(list(tmp_path.iterdir()))


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_where_it_stopped(model, ids, forwards, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    blocks = -(-89 // 20)
    whole = ablate(model, ids, **SIX, block=20, resamples=20)
    assert forwards.count == 6 * blocks
    forwards.count, forwards.stop_at = 0, 2 * blocks + 3  # in the middle of the third cell
    with pytest.raises(Interrupted):
        ablate(model, ids, **SIX, block=20, folder=tmp_path, resamples=20)
    assert len(list(tmp_path.iterdir())) == 3
    done, forwards.count, forwards.stop_at = 2 * blocks + 2, 0, None
    resumed = ablate(model, ids, **SIX, block=20, folder=tmp_path, resamples=20)
    assert forwards.count == 6 * blocks - done
    pd.testing.assert_frame_equal(whole[EXACT], resumed[EXACT])


@pytest.mark.slow
def test_a_damaged_cell_is_refused_by_name_before_anything_runs(model, ids, forwards, tmp_path):
    ablate(model, ids, **SIX, folder=tmp_path, resamples=20)
    torn = sorted(tmp_path.iterdir())[2]
    held = torn / "record.nc"
    held.write_bytes(held.read_bytes()[:100])
    with pytest.raises(SinkscopeError, match=f"the record of the cell .*{torn.name} is not the one .* delete it"):
        ablate(model, ids, **(SIX | dict(sinks=(0, 1, 2, 4, 6, 8, 10))), folder=tmp_path, resamples=20)
    assert forwards.count == 6
    shutil.rmtree(torn)
    ablate(model, ids, **SIX, folder=tmp_path, resamples=20)
    assert forwards.count == 7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["record.nc", "cell.json"])
@pytest.mark.parametrize("put", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_a_pipe_or_a_device_in_a_cell_is_refused_and_nobody_waits_for_its_end(model, ids, tmp_path, name, put):
    ablate(model, ids, sinks=(0, 1), cache_size=16, folder=tmp_path, resamples=20)
    place = sorted(tmp_path.iterdir())[0] / name
    place.unlink()
    put(place)
    assert f"its {name} is no file" in list_cells(tmp_path).problem[0]


def test_names_that_are_not_of_characters_have_a_table(model, ids, tmp_path):
    name = os.fsdecode(b"te\xffxt")
    grid = {"models": {"mine": model}, "texts": {name: ids}, "policies": SinkWindow(2, 8, label=name)}
    for table in (sweep(grid, tmp_path), sweep_table(tmp_path), list_cells(tmp_path)):
        assert table.text[0] == table.policy[0] == "te?xt"
    assert text_name(tmp_path / name) == "te?xt"


@pytest.mark.slow
def test_cells_of_a_worker_with_another_disk_are_kept_here(model, ids, forwards, tmp_path, monkeypatch):
    run, elsewhere = RecordCell.run, tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(RecordCell, "run", lambda cell, path, advance: run(cell, elsewhere / path.name, advance))
    table = ablate(model, ids, **SIX, folder=tmp_path / "here", resamples=20)
    assert len(list((tmp_path / "here").iterdir())) == 6
    pd.testing.assert_frame_equal(table, ablate(model, ids, **SIX, folder=tmp_path / "here", resamples=20))
    assert forwards.count == 6


@pytest.mark.slow
def test_the_folder_may_be_relative(model, ids, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ablate(model, ids, (0, 1), 16, folder="cells", resamples=20)
    assert len(list((tmp_path / "cells").iterdir())) == 2


@pytest.mark.parametrize("place", ["x" * 5000, "a\0b", "~nobody-here/run", "loop"])
def test_a_folder_that_no_file_system_holds_is_none(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for read in (
        sweep_table,
        list_cells,
        lambda folder: compare_cells(folder, folder),
        lambda folder: compare([folder]),
    ):
        with pytest.raises(SinkscopeError, match=r"there is no folder|names no file|holds no record") as refused:
            read(place)
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "~nobody-here/book", "loop"])
def test_a_grid_of_texts_and_models_of_any_name_is_made_and_says_later_that_they_are_not_there(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    made = Grid.of({"models": [name], "texts": [name]})
    assert list(made.sources) == [name]
    with pytest.raises(SinkscopeError, match="is not a file"):
        next(iter(made.segments.values())).read(byte_level("$A"))

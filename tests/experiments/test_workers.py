"""The same numbers wherever the cells run: in threads, in processes, on a cluster."""

from __future__ import annotations

import itertools

import joblib
import pandas as pd
import pytest
import torch

from sinkscope.errors import SinkscopeError
from sinkscope.experiments import cells, runner
from sinkscope.experiments.runner import ModelSource
from tests.experiments.ablating import EXACT, ablated


@pytest.fixture
def saved(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def dask_workers():
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster):
        yield


@pytest.fixture
def only_elsewhere(monkeypatch):
    """Called, makes this process unable to run a cell."""

    def refuse(*_):
        raise AssertionError("a cell was run in the process that asked for it")

    return lambda: monkeypatch.setattr(cells, "read_texts", refuse)


@pytest.mark.slow
def test_loky_workers_give_identical_numbers(model, ids, only_elsewhere):
    here = ablated(model, ids)
    only_elsewhere()
    with joblib.parallel_config(backend="loky", n_jobs=2):
        there = ablated(model, ids)
    pd.testing.assert_frame_equal(here[EXACT], there[EXACT])


@pytest.mark.slow
def test_threads_that_share_a_model_give_identical_numbers(model, ids):
    here = ablated(model, ids)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        there = ablated(model, ids)
    pd.testing.assert_frame_equal(here[EXACT], there[EXACT])


@pytest.mark.slow
def test_n_jobs_alone_gives_identical_numbers(model, ids):
    pd.testing.assert_frame_equal(ablated(model, ids)[EXACT], ablated(model, ids, n_jobs=2)[EXACT])


@pytest.mark.slow
def test_a_backend_that_hands_over_all_at_the_end_gives_identical_numbers(model, ids, monkeypatch):
    monkeypatch.setattr(
        joblib._parallel_backends.ThreadingBackend, "supports_return_generator", False, raising=True
    )  # as Ray's
    here = ablated(model, ids)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        pd.testing.assert_frame_equal(here[EXACT], ablated(model, ids)[EXACT])


@pytest.mark.slow
def test_dask_workers_give_identical_numbers(dask_workers, model, ids, tmp_path, only_elsewhere):
    here = ablated(model, ids)
    only_elsewhere()
    with joblib.parallel_config(backend="dask"):
        there = ablated(model, ids, folder=tmp_path)
    pd.testing.assert_frame_equal(here[EXACT], there[EXACT])
    assert len(list(tmp_path.iterdir())) == here["cell"].nunique()


@pytest.mark.slow
def test_dask_workers_load_a_model_from_its_path(dask_workers, model, ids, saved, only_elsewhere):
    here = ablated(model, ids)
    only_elsewhere()
    with joblib.parallel_config(backend="dask"):
        pd.testing.assert_frame_equal(here[EXACT], ablated(saved, ids)[EXACT])


@pytest.mark.slow
def test_a_path_is_loaded_once_and_travels_without_weights(model, ids, saved, monkeypatch):
    loads = []
    original = runner.load
    monkeypatch.setattr(runner, "load", lambda place: loads.append(place) or original(place))
    monkeypatch.chdir(saved.parent)
    table = ablated("model", ids)
    assert loads == [str(saved)]
    pd.testing.assert_frame_equal(ablated(model, ids)[EXACT], table[EXACT])
    assert ModelSource.of("model").given == str(saved)
    assert runner._held.cache_info().currsize == 0


@pytest.mark.slow
def test_a_worker_that_holds_older_weights_loads_them_again(model, ids, saved):
    with joblib.parallel_config(backend="loky", n_jobs=2):
        old = ablated(saved, ids)
        with torch.no_grad():
            model.lm_head.weight *= 1.5
        model.save_pretrained(saved)
        new = ablated(saved, ids)
    assert (old["ppl"] != new["ppl"]).all()
    pd.testing.assert_frame_equal(ablated(model, ids)[EXACT], new[EXACT])


@pytest.mark.slow
def test_a_machine_with_other_weights_is_refused(model, ids, saved, monkeypatch):
    places = itertools.count()
    original = runner.load

    def elsewhere(place):
        found, tokenizer = original(place)
        with torch.no_grad():
            found.lm_head.weight += next(places)
        return found, tokenizer

    monkeypatch.setattr(runner, "load", elsewhere)
    source_open = ModelSource.open
    monkeypatch.setattr(ModelSource, "open", lambda self: (self.forget(), source_open(self))[1])
    with pytest.raises(
        SinkscopeError, match=r"a worker found another model in .* than this run began with .it has other weights"
    ):
        ablated(saved, ids)

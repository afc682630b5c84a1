"""A sweep gives the numbers that each experiment gives alone, keeps them whole, and runs nothing twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import distributed
import joblib
import numpy as np
import pandas as pd
import pytest
import torch

import sinkscope
from sinkscope import Dense, SinkWindow, Window, sweep
from sinkscope.errors import SinkscopeError
from sinkscope.experiments import cells, runner
from sinkscope.streaming import checkpoint
from tests.experiments.ablating import Interrupted
from tests.support import zoo

ALL = {
    "perplexity": {"block": 32},
    "measure": {"probes": ["Entropy", {"SinkMass": {"first": 2}}]},
    "recall": {"distances": [16, 32], "passage": 8, "passages": 3},
    "interventions": {"interventions": [{"EvictKeys": {"which": "sinks"}}, "Shift"], "start": 32},
}


def grid(model, ids, **axes):
    given = dict(models={"tiny": model}, texts={"text": ids}, policies=["dense", "window", "sinks"], sinks=2)
    return given | dict(cache_sizes=[16, 24]) | axes


def numbers(table):
    return table.drop(columns=["cell"])


@pytest.mark.slow
def test_each_number_is_that_of_the_experiment_alone(model, ids):
    table = sweep(grid(model, ids, experiments=ALL)).set_index(["experiment", "policy", "at", "quantity"])["value"]
    policies = [Dense(), Window(16), Window(24), SinkWindow(2, 14), SinkWindow(2, 22)]
    losses = sinkscope.perplexity(model, ids, policies, progress=False)
    for name, expected in zip(losses.policy.values, sinkscope.ppl(losses).values, strict=True):
        np.testing.assert_allclose(table["perplexity", name, "", "ppl"], expected, rtol=1e-5)
    for policy in policies:
        with (
            torch.no_grad(),
            sinkscope.attached(model, policy=policy, probes=[sinkscope.Maps(resolution=None)]) as scope,
        ):
            model(ids)
        maps = scope.record.attention_map.values[0]  # [layer, head, query, key]
        np.testing.assert_allclose(
            table["measure", policy.name, "", "sink_mass"], maps[..., 2:, :2].sum(-1).mean(), rtol=1e-5
        )
        rate = np.mean(maps.shape[-1] * maps[..., 0].mean(-1) / maps.shape[-1] > 0.3)
        np.testing.assert_allclose(table["measure", policy.name, "", "sink_rate"], rate)
    again = sinkscope.recall(model, ids, policies, distances=[16, 32], passage=8, passages=3, progress=False)
    for row in sinkscope.recall_table(again).itertuples():
        at = row.policy, f"distance {row.distance}"
        np.testing.assert_allclose(table["recall", *at, "gain"], row.gain, atol=1e-5)
        np.testing.assert_allclose(table["recall", *at, "recalled"], row.recalled, atol=1e-5)
    chosen = [sinkscope.EvictKeys("sinks"), sinkscope.Shift()]
    for row in sinkscope.intervene(model, ids, chosen, start=32, sinks=2).itertuples():
        assert table["interventions", "dense", row.intervention, "ppl"] == row.ppl


@pytest.mark.slow
def test_what_is_finished_is_not_run_again_and_the_folder_gives_the_same_table(model, ids, forwards, tmp_path):
    table = sweep(grid(model, ids, experiments=ALL), tmp_path)
    assert table["cell"].nunique() == 5 + 5 + 5 + 1 == len(list((tmp_path / "cells").iterdir()))
    forwards.count = 0
    pd.testing.assert_frame_equal(sweep(grid(model, ids, experiments=ALL), tmp_path), table)
    assert forwards.count == 0
    pd.testing.assert_frame_equal(sinkscope.sweep_table(tmp_path), table)
    sweep(grid(model, ids, cache_sizes=[16, 24, 32], experiments={"perplexity": {"block": 89}}), tmp_path / "other")
    forwards.count = 0
    sweep(grid(model, ids, cache_sizes=[16, 24, 32, 40], experiments={"perplexity": {"block": 89}}), tmp_path / "other")
    assert forwards.count == 2  # a window and sinks at one more size


@pytest.mark.slow
def test_ablations_and_sweeps_share_their_cells(model, ids, forwards, tmp_path):
    sweep(grid(model, ids, policies=["sinks"], sinks=[0, 1, 2], cache_sizes=16), tmp_path)
    forwards.count = 0
    sinkscope.ablate(model, ids, (0, 1, 2), 16, folder=tmp_path / "cells", resamples=20)
    assert forwards.count == 0


@pytest.mark.slow
def test_axes_that_an_experiment_does_not_depend_on_make_no_cells(model, ids):
    table = sweep(
        grid(model, ids, experiments=ALL, policies=["dense", "sinks"], sinks=[0, 1, 2], cache_sizes=16, seeds=[0, 1])
    )
    counts = table.groupby("experiment")["cell"].nunique().to_dict()
    assert counts == {"perplexity": 4, "measure": 4, "recall": 4, "interventions": 2 * 2}
    assert table[table.experiment != "interventions"]["seed"].isna().all()
    sampled = sweep(
        grid(
            model, ids, policies=["recompute"], cache_sizes=8, seeds=[0, 1], experiments={"perplexity": {"samples": 9}}
        )
    )
    assert sampled["seed"].tolist() == [0, 1] and sampled["value"].nunique() == 2
    assert sampled["tokens"].tolist() == [8 + 9] * 2


@pytest.mark.slow
def test_other_weights_texts_or_options_make_other_cells(model, ids, tmp_path):
    found = {sweep(grid(model, ids, policies="dense", cache_sizes=16), tmp_path)["cell"].item()}
    found |= {sweep(grid(model, ids + 1, policies="dense", cache_sizes=16), tmp_path)["cell"].item()}
    blocks = {"perplexity": {"block": 7}}
    found |= {sweep(grid(model, ids, policies="dense", cache_sizes=16, experiments=blocks), tmp_path)["cell"].item()}
    with torch.no_grad():
        model.lm_head.weight *= 1.5
    found |= {sweep(grid(model, ids, policies="dense", cache_sizes=16), tmp_path)["cell"].item()}
    assert len(found) == 4


@dataclass(frozen=True, repr=False)
class Odd(sinkscope.StaticPolicy):
    """Every other token, and itself."""

    def sees(self, query, key):
        return (query - key) % 2 == 0


@pytest.mark.slow
def test_classes_of_ones_own_go_to_workers(model, ids, tmp_path):
    class Steps(sinkscope.Intervention):
        def apply(self, text, number, conditions):
            return sinkscope.Trial(text, policy=Odd())

    own = grid(
        model, ids, policies=["dense", Odd()], cache_sizes=16,
        experiments={"perplexity": None, "interventions": {"interventions": [Steps()], "start": 32}},
    )  # fmt: skip
    here = sweep(own)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        pd.testing.assert_frame_equal(sweep(own, tmp_path), here)
    pd.testing.assert_frame_equal(sweep(own, tmp_path), here)


@pytest.mark.slow
def test_a_policy_that_no_model_can_take_is_refused_and_one_that_some_can_is_left_out_aloud(model, ids):
    absolute = zoo.build("gpt2")
    with pytest.raises(SinkscopeError, match=r"no model of this grid can take perplexity under `window 16`: GPT2"):
        sweep(grid(absolute, ids))
    both = {"tiny": model, "gpt2": absolute}
    with pytest.warns(UserWarning, match="perplexity under `window 16` is left out where gpt2 cannot take it: GPT2"):
        table = sweep(grid(model, ids, models=both))
    assert table[table.model == "gpt2"]["policy"].tolist() == ["dense"]
    with pytest.raises(SinkscopeError, match=r"no model .* can take measure under `recompute 16`"):
        sweep(grid(model, ids, policies=["recompute"], experiments="measure", cache_sizes=16))
    with pytest.raises(SinkscopeError, match=r"no model .* can take recall .* need one text of at least"):
        sweep(grid(model, ids, experiments="recall"))


@pytest.mark.slow
def test_a_cell_that_cannot_be_run_lets_the_others_finish(model, ids, tmp_path, monkeypatch):
    read = cells.read_texts

    def failing(model, texts, policy, *others):
        if policy == Window(16):
            raise SinkscopeError("the disk is full.")
        return read(model, texts, policy, *others)

    monkeypatch.setattr(cells, "read_texts", failing)
    with pytest.raises(
        SinkscopeError, match=r"1 of 5 cells could not be run, perplexity .* `window 16` .*disk is full;"
    ):
        sweep(grid(model, ids), tmp_path)
    assert len(list((tmp_path / "cells").iterdir())) == 4
    monkeypatch.undo()
    pd.testing.assert_frame_equal(sweep(grid(model, ids), tmp_path), sweep(grid(model, ids)))


@pytest.mark.slow
def test_an_interrupted_cell_goes_on_where_it_stopped(model, ids, forwards, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    one = grid(model, ids, policies=["window"], cache_sizes=16, experiments={"perplexity": {"block": 20}})
    whole = sweep(one)
    forwards.count, forwards.stop_at = 0, 4
    with pytest.raises(Interrupted):
        sweep(one, tmp_path)
    assert [each.suffix for each in (tmp_path / "cells").iterdir()] == [".safetensors"]
    forwards.count, forwards.stop_at = 0, None
    pd.testing.assert_frame_equal(sweep(one, tmp_path), whole)
    assert forwards.count == 2 and [each.suffix for each in (tmp_path / "cells").iterdir()] == [""]


@pytest.mark.slow
def test_a_model_is_loaded_once_and_no_other_is_held(model, ids, tmp_path, monkeypatch):
    places = {}
    for number in range(2):
        model.save_pretrained(tmp_path / f"model{number}")
        places[f"model{number}"] = str(tmp_path / f"model{number}")
        with torch.no_grad():
            model.lm_head.weight *= 1.5
    loads, original = [], runner.load
    monkeypatch.setattr(runner, "load", lambda place: loads.append(place) or original(place))
    sweep(grid(model, ids, models=places))
    assert loads == [*places.values()] * 2  # to plan, and to run
    assert runner._held.cache_info().currsize == 0


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_model_edited_between_two_sweeps_is_read_anew_by_workers_that_held_it(model, ids, tmp_path, n_jobs):
    model.save_pretrained(tmp_path / "model")
    one = grid(str(tmp_path / "model"), ids, policies=["dense", "window"], cache_sizes=16)
    before = sweep(one, tmp_path / "run", n_jobs=n_jobs)
    config = tmp_path / "model" / "config.json"
    told = json.loads(config.read_text())
    told["rope_parameters"]["rope_theta"] = 50.0
    config.write_text(json.dumps(told))
    after = sweep(one, tmp_path / "run", n_jobs=n_jobs)
    changed = sinkscope.load(tmp_path / "model")[0]
    pd.testing.assert_frame_equal(after, sweep(grid(changed, ids, policies=["dense", "window"], cache_sizes=16)))
    assert not set(after["cell"]) & set(before["cell"]) and (after["value"] != before["value"]).all()


PROGRAM = """
import sys, torch
import sinkscope
from sinkscope.streaming import checkpoint
checkpoint.SECONDS = 0.0
torch.set_num_threads(1)
grid = dict(
    models={"tiny": sys.argv[1]}, texts={"text": torch.arange(800) * 7919 % 120},
    policies=["dense", "window", "sinks"], sinks=[1, 2, 4], cache_sizes=[32, 64, 128],
    experiments={"perplexity": {"block": 16}, "measure": {"probes": ["Entropy"]}},
)
print(sinkscope.sweep(grid, sys.argv[2], progress=False).to_csv())
"""


def start(model: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, model, folder], stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    zoo.build("llama").save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def undisturbed(saved):
    """What the program prints, and the folder of its run."""
    return start(saved, saved.parent / "undisturbed").communicate()[0], saved.parent / "undisturbed"


def records(folder):
    return {
        each.name: sinkscope.open_record(each / "record.nc") for each in (folder / "cells").iterdir() if each.is_dir()
    }


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_to_the_bit(saved, undisturbed, tmp_path):
    folder, seen = tmp_path / "killed", set()
    for number in range(2):
        process = start(saved, folder)
        while process.poll() is None and len(seen) < 3 * (number + 1):
            seen = set(folder.glob("cells/*/cell.json"))
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert 0 < len(seen) < 26
    assert start(saved, folder).communicate()[0] == undisturbed[0]
    for name, record in records(folder).items():
        other = records(undisturbed[1])[name]
        assert record.drop_vars("seconds", errors="ignore").equals(other.drop_vars("seconds", errors="ignore"))
    assert (sinkscope.list_cells(folder)["problem"] == "").all()


@pytest.mark.slow
def test_two_runs_in_one_folder_at_once_both_end_right(saved, undisturbed, tmp_path):
    both = [start(saved, tmp_path / "both") for _ in range(2)]
    assert [each.communicate()[0] for each in both] == [undisturbed[0]] * 2
    assert (sinkscope.list_cells(tmp_path / "both")["problem"] == "").all()
    assert not list((tmp_path / "both" / "cells").glob(".*"))


@dataclass(frozen=True)
class Deadly(sinkscope.LayerProbe):
    """The end of the process that measures, while a file is there."""

    file: str

    makes: ClassVar = {"nothing": sinkscope.Variable(("sequence", "head"))}

    def observe(self, layer):
        if os.path.exists(self.file):
            os._exit(9)
        return {"nothing": torch.zeros(layer.lse.shape[:2])}


@pytest.mark.slow
def test_a_worker_that_dies_is_one_sentence_and_a_folder_to_go_on_from(model, ids, tmp_path):
    deadly = tmp_path / "deadly"
    one = grid(model, ids, experiments={"perplexity": None, "measure": {"probes": [Deadly(str(deadly))]}})
    whole = sweep(one)
    deadly.touch()
    with (
        joblib.parallel_config(backend="loky", n_jobs=2),
        pytest.raises(SinkscopeError, match=r"a worker died .* the same call goes on from there") as told,
    ):
        sweep(one, tmp_path / "run")
    assert "\n" not in str(told.value)
    deadly.unlink()
    pd.testing.assert_frame_equal(sweep(one, tmp_path / "run"), whole)


@pytest.mark.slow
def test_dask_workers_give_identical_numbers_and_keep_them(saved, ids, tmp_path):
    here = sweep(grid(str(saved), ids, experiments=ALL))
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        pd.testing.assert_frame_equal(sweep(grid(str(saved), ids, experiments=ALL), tmp_path / "run"), here)
    assert (sinkscope.list_cells(tmp_path / "run")["problem"] == "").all()


def test_two_names_of_the_same_numbers_are_one_cell_and_two_rows(model, ids, forwards):
    table = sweep(grid(model, ids, texts={"one": ids, "other": ids.clone()}, policies="dense", cache_sizes=16))
    assert table["text"].tolist() == ["one", "other"] and table["cell"].nunique() == 1 and forwards.count == 1


def test_the_card_tells_what_the_numbers_follow_from(model, ids, tmp_path):
    sweep(grid(model, ids, policies="window", cache_sizes=16), tmp_path)
    (card,) = tmp_path.glob("cells/*/cell.json")
    told = json.loads(card.read_text())
    assert told["settings"]["policy"] == "Window(size=16)" and told["about"]["model"] == "tiny"
    assert [row["quantity"] for row in told["rows"]] == ["ppl"]

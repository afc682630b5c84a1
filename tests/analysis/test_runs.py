"""A run folder is listed and verified by its hashes, compared by its numbers, and gives its losses as one record."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

import sinkscope
from sinkscope import compare_cells, list_cells, sweep, sweep_losses, sweep_table
from sinkscope.errors import SinkscopeError
from tests.support import zoo

GRID = dict(policies=["dense", "window", "sinks"], sinks=1, cache_sizes=[16, 24])


@pytest.fixture(scope="module")
def model():
    return zoo.build("llama")


@pytest.fixture(scope="module")
def ids():
    return zoo.inputs("llama", batch=2, tokens=60)["input_ids"]


@pytest.fixture
def run(model, ids, tmp_path):
    sweep(dict(GRID, models={"tiny": model}, texts={"text": ids}), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
def test_every_cell_is_listed_with_what_it_is(run):
    table = list_cells(run)
    assert sorted(table["policy"]) == ["dense", "sinks 1+15", "sinks 1+23", "window 16", "window 24"]
    assert (table["model"] == "tiny").all() and (table["problem"] == "").all() and (table["seconds"] > 0).all()
    pd.testing.assert_frame_equal(list_cells(run / "cells"), table)


def change_card(cell, **changes):
    told = json.loads((cell / "cell.json").read_text())
    (cell / "cell.json").write_text(json.dumps(told | changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda cell: (cell / "record.nc").write_bytes(b"x" + (cell / "record.nc").read_bytes()[1:]), "the record of"),
        (lambda cell: (cell / "record.nc").unlink(), "is damaged"),
        (lambda cell: (cell / "cell.json").unlink(), "is damaged"),
        (lambda cell: (cell / "cell.json").write_text("["), "is damaged"),
        (lambda cell: (cell / "cell.json").write_text("[]"), "is damaged"),
        (lambda cell: change_card(cell, rows=[]), "the card of"),
        (lambda cell: change_card(cell, settings={}), "the card of"),
        (lambda cell: change_card(cell, more=1), "is damaged"),
        (lambda cell: cell.rename(cell.with_name("0" * 32)), "the card of"),
    ],
)
def test_a_cell_that_was_changed_is_told_and_refused(run, damage, words):
    damage(sorted((run / "cells").iterdir())[1])
    problems = list_cells(run)["problem"]
    assert (problems != "").sum() == 1 and words in problems[problems != ""].item()
    with pytest.raises(SinkscopeError, match=f"{words}.*delete it") as refused:
        sweep_table(run)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_damaged_cell_stops_a_sweep_before_anything_runs(run, model, ids):
    (run / "cells").joinpath(list_cells(run)["cell"][0], "record.nc").write_bytes(b"")
    with pytest.raises(SinkscopeError, match=r"the record of the cell .* delete it"):
        sweep(dict(GRID, models={"tiny": model}, texts={"text": ids}), run)


def test_what_is_no_run_folder_is_refused(tmp_path):
    for place, words in ((tmp_path / "none", "there is no folder"), (tmp_path, "holds no finished cell")):
        for function in (list_cells, sweep_table, sweep_losses):
            with pytest.raises(SinkscopeError, match=words):
                function(place)


@pytest.mark.slow
def test_the_losses_of_all_policies_are_those_of_one_call(run, model, ids):
    record = sweep_losses(run)
    policies = [sinkscope.Dense(), sinkscope.Window(16), sinkscope.SinkWindow(1, 15)]
    expected = sinkscope.perplexity(model, ids, policies, progress=False)
    np.testing.assert_array_equal(record.nll.sel(policy=expected.policy.values), expected.nll)
    assert record.sizes["policy"] == 5
    table = sinkscope.ppl_table(record, baseline="dense").set_index("policy")
    swept = sweep_table(run).set_index("policy")["value"]
    np.testing.assert_allclose(table["ppl"], swept[table.index])
    with pytest.raises(SinkscopeError, match="losses of one model and text are needed, and there are: none"):
        sweep_losses(run, model="other")


@pytest.mark.slow
def test_equal_folders_are_equal_to_the_bit_and_others_say_what_differs(run, model, ids, tmp_path):
    other = tmp_path / "other"
    sweep(dict(GRID, models={"tiny": model}, texts={"text": ids}), other)
    table = compare_cells(run, other)
    assert len(table) == 5 and (table["largest"] == 0).all() and (table["differs"] == "").all()
    changed = zoo.build("llama")
    with torch.no_grad():
        changed.lm_head.weight *= 1.5
    third = tmp_path / "third"
    sweep(dict(GRID, models={"tiny": changed}, texts={"text": ids}, policies=["dense", "window"]), third)
    table = compare_cells(run, third).set_index("policy")
    assert (table["differs"].dropna() == "weights").all() and table["other_cell"].isna().sum() == 2
    before, now = (sweep_losses(each).sel(policy="dense").nll for each in (run, third))
    np.testing.assert_allclose(table["largest"]["dense"], float(abs(before - now).max()), rtol=1e-6)
    cells = [folder / "cells" / list_cells(folder).set_index("policy")["cell"]["dense"] for folder in (run, third)]
    assert compare_cells(*cells)["largest"].item() == table["largest"]["dense"]


@pytest.mark.slow
def test_a_folder_with_cells_of_two_settings_says_so(run, model, ids):
    with pytest.warns(UserWarning, match="more than once, with other block, and 4 others: the column `cell` tells"):
        sweep(dict(GRID, models={"tiny": model}, texts={"text": ids}, experiments={"perplexity": {"block": 7}}), run)
        table = sweep_table(run)
    assert len(table) == 10
    with pytest.raises(SinkscopeError, match="twice, from runs with other settings"):
        sweep_losses(run)


@pytest.mark.slow
def test_models_of_a_sweep_are_compared_as_those_of_reports(model, ids, tmp_path):
    axes = dict(models={"tiny": model}, texts={"text": ids}, sinks=1, cache_sizes=16)
    sweep(axes | dict(experiments=["measure", "perplexity"], policies=["dense", "window", "sinks"]), tmp_path)
    table = sinkscope.compare([tmp_path])
    policies = [sinkscope.Window(16), sinkscope.SinkWindow(1, 15)]
    curve = sinkscope.perplexity(model, ids, policies, progress=False, text="text")
    expected = sinkscope.compare([(sinkscope.measure(model, ids, progress=False), curve)])
    numbers = table.select_dtypes("number").columns
    pd.testing.assert_frame_equal(table[numbers], expected[numbers])
    assert table["model"].item() == "tiny" and table["text"].item() == "text"


@pytest.mark.slow
def test_trainings_of_the_laboratory_are_listed_and_verified(tmp_path):
    text = "the quick brown fox jumps over the lazy dog " * 40
    sinkscope.lab.bigram_backcopy(
        arms=["softmax"], seeds=[0, 1], steps=2, text=text, folder=tmp_path, progress=False, every=1
    )
    table = list_cells(tmp_path)
    assert table["experiment"].tolist() == ["training"] * 2 and (table["problem"] == "").all()
    file = sorted(tmp_path.glob("*.safetensors"))[0]
    held = bytearray(file.read_bytes())
    held[-1] ^= 1
    file.write_bytes(held)
    assert (list_cells(tmp_path)["problem"] != "").sum() == 1


@pytest.mark.slow
def test_neither_listing_nor_verifying_needs_torch(run):
    program = (
        "import sys, sinkscope\nsinkscope.list_cells(sys.argv[1]); sinkscope.sweep_table(sys.argv[1])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, run], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def one(model, ids, tmp_path):
    """The only cell of a run."""
    sweep(dict(models={"tiny": model}, texts={"text": ids}, policies=["dense"]), tmp_path / "one")
    return next((tmp_path / "one" / "cells").iterdir())


def test_cells_of_a_model_or_text_that_was_changed_in_between_are_not_set_side_by_side(one, model, ids):
    other, folder = copy.deepcopy(model), one.parent.parent
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(2)
    sinks = dict(policies=["sinks"], sinks=1, cache_sizes=16)
    sweep(dict(sinks, models={"tiny": other}, texts={"text": ids}), folder)
    with pytest.raises(SinkscopeError, match=r"two models or texts by the names tiny and text \(weights differ\)"):
        sweep_losses(folder)
    sweep(dict(sinks, models={"tiny": model}, texts={"text": ids % 7}), folder)
    with pytest.raises(SinkscopeError, match=r"weights differ|text differ"):
        sweep_losses(folder)


@pytest.mark.slow
def test_compare_does_not_join_the_sinks_of_one_model_with_the_losses_of_another(model, ids, tmp_path):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(2)
    shared = dict(texts={"text": ids})
    sweep(dict(shared, models={"tiny": model}, policies=["dense"], experiments={"measure": {}}), tmp_path)
    sweep(dict(GRID, **shared, models={"tiny": other}, experiments={"perplexity": {}}), tmp_path)
    with pytest.raises(SinkscopeError, match="two models or texts by the names tiny"):
        sinkscope.compare([tmp_path])


@pytest.mark.parametrize(
    "about", [[1], {"seed": "abc"}, {"seed": 1.5}, {"seed": 10**30}, {"model": [1]}, {"policy": {"a": 1}}]
)
def test_a_card_of_odd_values_is_damaged_though_its_hash_is_right(one, about):
    card = json.loads((one / "cell.json").read_text())
    del card["card_sha256"]
    card["about"] = about if isinstance(about, list) else card["about"] | about
    card["card_sha256"] = hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()
    (one / "cell.json").write_text(json.dumps(card))
    assert "is damaged" in list_cells(one.parent)["problem"].item()
    for reads in (sweep_losses, sweep_table, lambda folder: compare_cells(folder, folder)):
        with pytest.raises(SinkscopeError, match="is damaged"):
            reads(one.parent)


@pytest.mark.slow
def test_one_cell_is_listed_and_compared_like_a_folder(one, run):
    assert list_cells(one)["cell"].item() == one.name
    assert sweep_table(one)["value"].item() == sweep_table(one.parent)["value"].item()
    table = compare_cells(one, run)
    pairs = table[table["largest"].notna()]
    assert pairs["policy"].item() == "dense" and pairs["largest"].item() == 0 and len(table) == 5
    others = sorted(set((run / "cells").iterdir()) - {run / "cells" / one.name})
    assert compare_cells(one, others[0])["largest"].item() > 0

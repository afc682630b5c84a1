"""The ablation against `perplexity` called by hand, wherever its cells run and however often they are interrupted."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace

import joblib
import numpy as np
import pandas as pd
import pytest
import torch

import sinkscope
from sinkscope import SinkWindow, ablate, perplexity
from sinkscope.analysis.perplexities import first_evicted
from sinkscope.errors import SinkscopeError
from sinkscope.streaming import checkpoint
from sinkscope.streaming.ablation import cells, model_source
from sinkscope.streaming.ablation.model_source import ModelSource
from sinkscope.streaming.ablation.sink_tokens import RandomTokens, line_break_token
from tests import zoo

LINE_BREAK = 7
FACTORS = dict(sinks=(0, 1, 4), cache_size=(16, 24), positions=("cache", "original"), kinds=("first", "line breaks"))
SIX = dict(sinks=(0, 1, 2, 4, 6, 8), cache_size=16)  # six cells
COMBINATION = ["cache_size", "kind", "positions", "sinks"]
EXACT = ["cell", *COMBINATION, "ppl", "low", "high", "ratio", "ratio_low", "ratio_high"]


class Tokenizer:
    """One that turns every text into the ids it was made with."""

    def __init__(self, *ids, last="\n"):
        self.ids, self.last = list(ids), last

    def encode(self, text, add_special_tokens):
        assert text == "\n" and not add_special_tokens
        return self.ids

    def decode(self, ids):
        return self.last if ids == self.ids[-1:] else "?"


class Interrupted(Exception):
    pass


@pytest.fixture
def model():
    return zoo.build("llama")


@pytest.fixture
def ids():
    return zoo.inputs("llama", batch=1, tokens=90)["input_ids"]


@pytest.fixture
def forwards(model):
    """Counts forward passes over blocks; raises in the one that `stop_at` names."""

    class Forwards:
        count, stop_at = 0, None

        def __call__(self, module, args, kwargs):
            given = args[0] if args else kwargs["input_ids"]
            if given.shape[1] > 1:  # rotary geometry is found with single tokens
                self.count += 1
            if self.stop_at is not None and self.count == self.stop_at:
                raise Interrupted

    counter = Forwards()
    model.register_forward_pre_hook(counter, with_kwargs=True)
    return counter


def ablated(model, ids, **more):
    return ablate(model, ids, tokenizer=Tokenizer(LINE_BREAK), resamples=50, progress=False, **(FACTORS | more))


def by_hand(model, ids, level, first):
    """exp of the mean loss from token `first` on, by `perplexity` of tokens replaced one by one."""
    changed = ids.clone()
    for at in range(level.sinks):
        if level.kind == "line breaks":
            changed[:, at] = LINE_BREAK
    policy = SinkWindow(level.sinks, level.cache_size - level.sinks, level.positions)
    nll = perplexity(model, changed, [policy], progress=False)["nll"].values[0]
    return float(np.exp(nll[:, first:].astype(np.float64).mean()))


# --- the numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma3"])
def test_every_cell_is_perplexity_with_the_tokens_replaced_by_hand(family):
    model, ids = zoo.build(family), zoo.inputs(family, batch=2, tokens=90)["input_ids"]
    table = ablated(model, ids)
    assert len(table) == 3 * 2 * 2 * 2
    for level in table.itertuples():
        assert level.ppl == pytest.approx(by_hand(model, ids, level, 5), rel=1e-12)
        assert level.ppl_evicted == pytest.approx(by_hand(model, ids, level, 26), rel=1e-12)
    assert table.attrs["tokens_used"] == 2 * (90 - 5)
    assert table.attrs["tokens_evicted"] == 2 * (90 - 26)


def test_the_same_tokens_are_scored_in_all_cells(model, ids, monkeypatch):
    seen = []
    import sinkscope.streaming.ablation.ablation_table as home

    original = home.ppl_table
    monkeypatch.setattr(home, "ppl_table", lambda curve, *a, **b: seen.append(curve) or original(curve, *a, **b))
    ablated(model, ids)
    evicted, *whole = [curve["nll"].notnull() for curve in seen]
    assert all(bool((scored.values == scored.values[:1]).all()) for scored in (evicted, *whole))
    assert all(scored.values[0, 0].nonzero()[0].tolist() == list(range(5, 90)) for scored in whole)
    assert evicted.values[0, 0].nonzero()[0].tolist() == list(range(26, 90))


@pytest.mark.parametrize("size", [5, 16])
def test_the_first_token_that_an_eviction_can_touch_is_the_cache_size_plus_two(model, ids, size):
    nll = perplexity(model, ids, [sinkscope.Dense(), SinkWindow(0, size)], progress=False)["nll"].values[:, 0, 1:]
    differs = np.abs(nll[0] - nll[1]) > 1e-4  # blocks and float32 sums: about 1e-6
    assert differs.nonzero()[0][0] + 1 == first_evicted(size)


def test_without_sinks_one_cell_is_run_and_its_row_repeated(model, ids, forwards):
    table = ablated(model, ids, cache_size=16, block=128)
    none = table[table["sinks"] == 0]
    assert len(none) == 4 and none["cell"].nunique() == 1 and none["ppl"].nunique() == 1
    assert forwards.count == table["cell"].nunique() == 1 + 2 * 2 * 2
    assert not table.duplicated(COMBINATION).any()


def test_ratios_are_to_the_most_sinks_of_the_same_cache_size(model, ids):
    table = ablated(model, ids).set_index(COMBINATION)
    for size, rows in table.groupby("cache_size"):
        most = rows.loc[(size, "first", "cache", 4)]
        np.testing.assert_allclose(rows["ratio"], rows["ppl"] / most["ppl"], rtol=1e-12)
        assert (most["ratio_low"], most["ratio_high"]) == (1.0, 1.0)
    assert ((table["ratio_low"] <= table["ratio"]) & (table["ratio"] <= table["ratio_high"])).all()
    assert ((table["low"] < table["ppl"]) & (table["ppl"] < table["high"])).all()


def test_without_first_tokens_ratios_are_to_the_first_kind_and_positions_given(model, ids):
    table = ablated(model, ids, kinds="random", positions="original", cache_size=16)
    assert table.loc[table["ratio"] == 1.0, ["sinks", "kind", "positions"]].values.tolist() == [
        [4, "random", "original"]
    ]
    assert table.attrs["baseline"] == "4 sinks of 16 (random, original positions)"


def test_intervals_are_those_of_ppl_table(model, ids):
    table = ablated(model, ids, cache_size=16, positions="cache", kinds="first", seed=3)
    curve = perplexity(model, ids, [SinkWindow(s, 16 - s) for s in (0, 1, 4)], progress=False)
    curve["nll"] = curve["nll"].where(curve["token"] >= 5)
    expected = sinkscope.ppl_table(curve, baseline="sinks 4+12", resamples=50, seed=3)
    for name in ("ppl", "low", "high", "ratio", "ratio_low", "ratio_high"):
        np.testing.assert_array_equal(table[name], expected[name])


def test_scalars_and_sequences_of_one_are_the_same(model, ids):
    several = ablate(model, ids, np.array([4]), [16], ["cache"], ["first"], resamples=20)
    one = ablate(model, ids, 4, 16, resamples=20)
    pd.testing.assert_frame_equal(one[EXACT], several[EXACT])


def test_levels_given_twice_count_once(model, ids):
    assert len(ablate(model, ids, (4, 0, 4), (16, 16), resamples=20)) == 2


def test_texts_of_different_lengths(model, ids):
    texts = [ids[0], ids[0, :60]]
    table = ablate(model, texts, (0, 2), 16, resamples=20)
    assert table.attrs["tokens_used"] == (90 - 3) + (60 - 3)


def test_the_text_given_is_not_changed(model, ids):
    before = ids.clone()
    ablated(model, ids, kinds=("line breaks", "random"))
    assert torch.equal(ids, before)


# --- what the sinks are ------------------------------------------------------------------------------------------


def test_random_tokens_depend_on_the_seed_and_on_nothing_else(model, ids):
    def perplexities(**more):
        table = ablated(model, ids, positions="cache", cache_size=16, kinds=("first", "random"), **more)
        return table.set_index(COMBINATION)["ppl"]

    first, again, other = perplexities(seed=1), perplexities(seed=1), perplexities(seed=2)
    pd.testing.assert_series_equal(first, again)
    changed = first != other
    assert changed[16, "random", "cache", 4] and changed.groupby("kind").sum()["first"] == 0


def test_fewer_random_sinks_are_the_first_of_more():
    kind, text = RandomTokens(128, seed=4), torch.arange(50)
    most = kind.put([text, text], 16)
    assert not torch.equal(most[0][:16], most[1][:16])
    for count in range(16):
        for row, changed in enumerate(kind.put([text, text], count)):
            assert torch.equal(changed[:count], most[row][:count]) and torch.equal(changed[count:], text[count:])


def test_a_blank_that_the_tokenizer_puts_before_every_text_is_no_line_break():
    assert line_break_token(Tokenizer(5, 13)) == 13
    assert line_break_token(Tokenizer(13)) == 13


# --- kept cells --------------------------------------------------------------------------------------------------


def test_finished_cells_are_not_run_again(model, ids, forwards, tmp_path):
    first = ablate(model, ids, **SIX, folder=tmp_path, resamples=20)
    assert forwards.count == 6 and len(list(tmp_path.iterdir())) == 6
    again = ablate(model, ids, **SIX, folder=tmp_path, resamples=20)
    assert forwards.count == 6
    pd.testing.assert_frame_equal(first, again)  # the time they took, too
    ablate(model, ids, **(SIX | dict(sinks=(0, 8, 10))), folder=tmp_path, seed=9, resamples=20)
    assert forwards.count == 7 and len(list(tmp_path.iterdir())) == 7


def test_other_tokens_weights_or_blocks_make_other_cells(model, ids, forwards, tmp_path):
    ablate(model, ids, **SIX, folder=tmp_path, resamples=20)
    ablate(model, ids + 1, **SIX, folder=tmp_path, resamples=20)
    ablate(model, ids, **SIX, folder=tmp_path, resamples=20, block=89)
    with torch.no_grad():
        model.lm_head.weight *= 1.5
    ablate(model, ids, **SIX, folder=tmp_path, resamples=20)
    assert forwards.count == 24 == len(list(tmp_path.iterdir()))


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


def test_a_damaged_cell_is_refused_by_name_before_anything_runs(model, ids, forwards, tmp_path):
    ablate(model, ids, **SIX, folder=tmp_path, resamples=20)
    torn = sorted(tmp_path.iterdir())[2]
    torn.write_bytes(torn.read_bytes()[:100])
    with pytest.raises(SinkscopeError, match=f"{torn.name} is damaged .* delete it"):
        ablate(model, ids, **(SIX | dict(sinks=(0, 1, 2, 4, 6, 8, 10))), folder=tmp_path, resamples=20)
    assert forwards.count == 6
    torn.unlink()
    ablate(model, ids, **SIX, folder=tmp_path, resamples=20)
    assert forwards.count == 7


def test_cells_of_a_worker_with_another_disk_are_kept_here(model, ids, forwards, tmp_path, monkeypatch):
    original = cells._run
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr(cells, "_run", lambda source, cell, run: original(source, replace(cell, folder=elsewhere), run))
    table = ablate(model, ids, **SIX, folder=tmp_path / "here", resamples=20)
    assert len(list((tmp_path / "here").iterdir())) == 6
    pd.testing.assert_frame_equal(table, ablate(model, ids, **SIX, folder=tmp_path / "here", resamples=20))
    assert forwards.count == 6


def test_the_folder_may_be_relative(model, ids, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ablate(model, ids, (0, 1), 16, folder="cells", resamples=20)
    assert len(list((tmp_path / "cells").iterdir())) == 2


# --- where cells run ---------------------------------------------------------------------------------------------


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


def test_loky_workers_give_identical_numbers(model, ids, only_elsewhere):
    here = ablated(model, ids)
    only_elsewhere()
    with joblib.parallel_config(backend="loky", n_jobs=2):
        there = ablated(model, ids)
    pd.testing.assert_frame_equal(here[EXACT], there[EXACT])


def test_threads_that_share_a_model_give_identical_numbers(model, ids):
    here = ablated(model, ids)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        there = ablated(model, ids)
    pd.testing.assert_frame_equal(here[EXACT], there[EXACT])


def test_n_jobs_alone_gives_identical_numbers(model, ids):
    pd.testing.assert_frame_equal(ablated(model, ids)[EXACT], ablated(model, ids, n_jobs=2)[EXACT])


def test_a_backend_that_hands_over_all_at_the_end_gives_identical_numbers(model, ids, monkeypatch):
    monkeypatch.setattr(
        joblib._parallel_backends.ThreadingBackend, "supports_return_generator", False, raising=True
    )  # as Ray's
    here = ablated(model, ids)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        pd.testing.assert_frame_equal(here[EXACT], ablated(model, ids)[EXACT])


def test_dask_workers_give_identical_numbers(dask_workers, model, ids, tmp_path, only_elsewhere):
    here = ablated(model, ids)
    only_elsewhere()
    with joblib.parallel_config(backend="dask"):
        there = ablated(model, ids, folder=tmp_path)
    pd.testing.assert_frame_equal(here[EXACT], there[EXACT])
    assert len(list(tmp_path.iterdir())) == here["cell"].nunique()


def test_dask_workers_load_a_model_from_its_path(dask_workers, model, ids, saved, only_elsewhere):
    here = ablated(model, ids)
    only_elsewhere()
    with joblib.parallel_config(backend="dask"):
        pd.testing.assert_frame_equal(here[EXACT], ablated(saved, ids)[EXACT])


def test_a_path_is_loaded_once_and_travels_without_weights(model, ids, saved, monkeypatch):
    loads = []
    original = model_source.load
    monkeypatch.setattr(model_source, "load", lambda place: loads.append(place) or original(place))
    monkeypatch.chdir(saved.parent)
    table = ablated("model", ids)
    assert loads == [str(saved)]
    pd.testing.assert_frame_equal(ablated(model, ids)[EXACT], table[EXACT])
    assert ModelSource.of("model").given == str(saved)
    assert model_source._held.cache_info().currsize == 0


def test_a_worker_that_holds_older_weights_loads_them_again(model, ids, saved):
    with joblib.parallel_config(backend="loky", n_jobs=2):
        old = ablated(saved, ids)
        with torch.no_grad():
            model.lm_head.weight *= 1.5
        model.save_pretrained(saved)
        new = ablated(saved, ids)
    assert (old["ppl"] != new["ppl"]).all()
    pd.testing.assert_frame_equal(ablated(model, ids)[EXACT], new[EXACT])


def test_a_machine_with_other_weights_is_refused(model, ids, saved, monkeypatch):
    places = itertools.count()
    original = model_source.load

    def elsewhere(place):
        found, tokenizer = original(place)
        with torch.no_grad():
            found.lm_head.weight += next(places)
        return found, tokenizer

    monkeypatch.setattr(model_source, "load", elsewhere)
    source_open = ModelSource.open
    monkeypatch.setattr(ModelSource, "open", lambda self: (self.forget(), source_open(self))[1])
    with pytest.raises(SinkscopeError, match=r"a worker found other weights in .*model than this run began with"):
        ablated(saved, ids)


# --- errors and provenance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(sinks=-1), "sinks=-1 is not a whole number of 0 or more"),
        (dict(sinks=(0, 1.5)), "sinks=1.5 is not a whole number"),
        (dict(sinks=()), r"sinks=\(\) is empty; give at least one"),
        (dict(sinks="4"), "sinks='4' is not a whole number"),
        (dict(sinks=16, cache_size=(24, 16)), "sinks=16 leave no room in cache_size=16"),
        (dict(cache_size=0), "cache_size=0 is not a whole number of 1 or more"),
        (dict(cache_size=88), "a text of 90 tokens evicts nothing from a cache of 88; give 91 tokens or more"),
        (dict(positions="text"), "positions='text' is unknown; give one or several of 'cache', 'original'"),
        (dict(kinds=("first", "last")), "kinds='last' is unknown; give one or several of 'first', 'line breaks'"),
        (dict(seed=-1), "seed=-1 is not a whole number of 0 or more"),
        (dict(resamples=0), "resamples=0 is not a whole number of 1 or more"),
        (dict(block=0), "block = 0 .* give 1 or more"),
        (dict(tokenizer=None), 'kinds="line breaks" needs a tokenizer'),
        (dict(tokenizer=Tokenizer(5, 6, last="?")), "makes 2 tokens of a line break, and a sink is one"),
        (dict(tokenizer=Tokenizer()), "makes 0 tokens of a line break"),
        (dict(tokenizer=Tokenizer(500)), "token id 500 is outside the vocabulary of 128 tokens"),
    ],
)
def test_what_cannot_be_ablated_is_one_sentence(model, ids, forwards, given, message):
    with pytest.raises(SinkscopeError, match=message):
        ablate(model, ids, **(FACTORS | dict(tokenizer=Tokenizer(LINE_BREAK)) | given))
    assert forwards.count == 0


def test_the_shortest_text_that_evicts_is_taken(model, ids):
    assert ablate(model, ids, (0, 1), 87, resamples=20).attrs["tokens_evicted"] == 1


def test_a_family_that_cannot_be_streamed_is_refused(ids):
    with pytest.raises(SinkscopeError, match="GPT2LMHeadModel"):
        ablate(zoo.build("gpt2"), ids, (0, 4), 16)


def test_original_positions_are_refused_where_they_cannot_be_counted(ids, tmp_path):
    with pytest.raises(SinkscopeError, match=r'GPTJForCausalLM .* in the cache; give positions="cache"'):
        ablate(zoo.build("gptj"), ids, (0, 4), 16, positions=("cache", "original"), folder=tmp_path)
    assert not list(tmp_path.iterdir())  # not even of the cells that could have been run


def test_a_model_in_training_mode_is_refused(model, ids):
    with pytest.raises(SinkscopeError, match="training mode"):
        ablate(model.train(), ids, (0, 4), 16)


def test_what_is_no_model_is_refused(ids):
    with pytest.raises(SinkscopeError, match="A model is a name, a path or a torch module, not a int"):
        ablate(3, ids, (0, 4), 16)
    with pytest.raises(SinkscopeError, match=r"There is no model at './nowhere'"):
        ablate("./nowhere", ids, (0, 4), 16)


def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(model, ids, forwards, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SinkscopeError, match="file/cells' cannot be made"):
        ablate(model, ids, (0, 4), 16, folder=tmp_path / "file" / "cells")
    assert forwards.count == 0


def test_a_cache_longer_than_the_trained_length_is_warned_of(ids):
    model = zoo.build("llama")
    model.config.max_position_embeddings = 32
    with pytest.warns(UserWarning, match="a cache of 40 tokens is longer than the 32 positions") as caught:
        ablate(model, ids, (0, 4), 40, resamples=20)
    assert {os.path.basename(each.filename) for each in caught} == {"test_ablation.py"}


def test_attrs_say_where_the_table_came_from(model, ids):
    attrs = ablated(model, ids, text="made up", seed=5).attrs
    expected = dict(
        kind="ablation", model="LlamaForCausalLM", dtype="float32", tokens=90, seed=5, block=1024, text="made up",
        first_scored=5, first_evicted=26, resamples=50, confidence=0.95,
    )  # fmt: skip
    assert expected.items() <= attrs.items()
    assert len(attrs["tokens_sha256"]) == 64 and attrs["bootstrap_block"] >= 1


def test_the_figure_takes_the_table(model, ids):
    from sinkscope.figures.ablation import ablation

    assert len(ablation(ablated(model, ids)).axes) == 2


def test_the_model_is_left_as_it_was(model, ids):
    before = (model.config._attn_implementation, len(model.model.layers[0].self_attn._forward_hooks))
    ablated(model, ids)
    assert before == (model.config._attn_implementation, len(model.model.layers[0].self_attn._forward_hooks))


def test_ablate_is_not_imported_with_the_package():
    program = "import sinkscope, sys; assert 'ablate' in sinkscope.__all__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)

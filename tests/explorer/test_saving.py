"""The view as files: a record that opens again, a figure, and code that measures what was shown."""

from __future__ import annotations

import ast
from functools import cache

import numpy as np
import pytest
from matplotlib.figure import Figure

import sinkscope
import sinkscope.figures
from sinkscope import SinkscopeError, open_record, save_record
from sinkscope.explorer import saving
from sinkscope.explorer.configuration import GONE, Configuration
from sinkscope.explorer.controller import Controller
from sinkscope.explorer.results import SavedMaps
from sinkscope.explorer.saving import code_of, save_view, view_record
from sinkscope.seals import unsealed
from tests.explorer.fakes import random_maps
from tests.explorer.references import CONFIGURATIONS, TOKENS, reader, text
from tests.support.eager import eager_maps
from tests.support.zoo import build

WAIT = 60
UNIT = 6  # layer 1, head 2
NAMES = ["view.pdf", "view.svg", "view.png", "view.nc", "view.py"]
ALIKE = ("no sinks", "softmax", "clipped", "stronger sinks", "chosen in a layer")  # to others that are here
ASKED = {name: configuration for name, (configuration, _) in CONFIGURATIONS.items() if name not in ALIKE} | {
    "recompute": Configuration(policy="recompute", window=12),
    "recompute of a short text": Configuration(policy="recompute", window=50),
    "sinks gone under ReLU": Configuration(dose=GONE, sinks=2, normaliser="ReLU", layers=(1, 1)),
    "recompute under softmax1": Configuration(policy="recompute", window=12, normaliser="softmax1"),
    "nothing evicted": Configuration(policy="window", window=60),
}


@cache
def begun(name: str) -> Controller:
    """One that has read the text with the model as it is."""
    made = Controller(reader(name), [f"word{place}" for place in range(TOKENS)])
    made.begin()
    assert made.wait(WAIT)
    made.choose(UNIT)
    return made


def controller_of(configuration: Configuration, name: str = "llama", query: int = TOKENS - 1) -> Controller:
    """One that shows a head under a configuration."""
    made = begun(name)
    made.choose_query(query)
    assert made.wait(WAIT)
    made.change(**vars(configuration))
    assert made.wait(WAIT) and made.problem == "" and made.name == configuration.name
    return made


@pytest.fixture
def loads_the_tiny_model(monkeypatch):
    """`sinkscope.load()` in saved code gives the model that was explored."""

    def loads(name="llama"):
        monkeypatch.setattr(sinkscope, "load", lambda: (build(name), None))

    loads()
    return loads


@pytest.fixture
def an_empty_figure(monkeypatch):
    """What is drawn takes a second or two, and does not matter here."""
    monkeypatch.setattr(sinkscope.figures, "explored", lambda record: Figure())


def shown_map(controller: Controller) -> np.ndarray:
    whole = slice(0, controller.maps.cells)
    return controller.maps.probabilities(UNIT, whole, whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*nothing is evicted")
@pytest.mark.parametrize("case", ASKED)
def test_the_code_measures_the_map_and_the_perplexities_that_were_shown(case, loads_the_tiny_model):
    controller = controller_of(ASKED[case], query=40 if "recompute" in case else 59)
    fresh: dict = {}
    exec(code_of(controller), fresh)
    np.testing.assert_allclose(fresh["attention_map"], np.nan_to_num(shown_map(controller)), atol=2e-5)
    loss = controller.loss
    if case == "nothing evicted":
        assert loss is None
        return
    measured = [float(sinkscope.ppl(fresh[name])[0]) for name in ("dense", "changed") if name in fresh]
    shown = [loss.dense] if ASKED[case].is_baseline else [loss.dense, loss.changed]
    np.testing.assert_allclose(measured, shown, rtol=1e-4)
    assert int(sinkscope.ppl(fresh["dense"]).tokens_used) == loss.tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "mpt"])
def test_the_code_is_right_for_other_families(name, loads_the_tiny_model):
    loads_the_tiny_model(name)
    controller = controller_of(Configuration() if name == "mpt" else CONFIGURATIONS["sinks"][0], name)
    fresh: dict = {}
    exec(code_of(controller), fresh)
    np.testing.assert_allclose(fresh["attention_map"], np.nan_to_num(shown_map(controller)), atol=2e-5)


@pytest.mark.slow
def test_the_code_prints_what_it_measured_and_reads_the_text_as_it_was_given(loads_the_tiny_model, capsys):
    controller = controller_of(CONFIGURATIONS["window"][0])
    code = code_of(controller, "torch.tensor([list(range(3, 63))])")
    assert "\nids = torch.tensor([list(range(3, 63))])\n" in code and code.startswith("# layer 1, head 2 of ")
    exec(code_of(controller), {})
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(printed["dense"]) == pytest.approx(controller.loss.dense, rel=1e-5)
    assert float(printed["changed"]) == pytest.approx(controller.loss.changed, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\0"])
def test_no_name_adds_a_line_to_the_code(end, monkeypatch):
    controller = controller_of(CONFIGURATIONS["window"][0])
    before = code_of(controller)
    attributes = dict(saving.model_attributes(controller.model.model))
    evil = f"a{end}import os; os.system('true'){end}# "
    monkeypatch.setattr(saving, "model_attributes", lambda _: attributes | {"model": evil})
    monkeypatch.setattr(Configuration, "name", property(lambda _: evil))
    code = code_of(controller)
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(before)) and "os.system" in code
    assert len(code.splitlines()) == len(before.splitlines())


@pytest.mark.slow
def test_a_view_is_saved_over_until_its_code_is_edited(tmp_path, an_empty_figure):
    controller = controller_of(CONFIGURATIONS["window"][0])
    for _ in range(2):
        files = save_view(controller, tmp_path)
    edited = files[-1].read_text().replace("torch.no_grad()", "torch.inference_mode()")
    files[-1].write_text(edited)
    before = files[0].read_bytes()
    with pytest.raises(SinkscopeError, match=r"view\.py: the file that is there was changed"):
        save_view(controller, tmp_path)
    assert files[-1].read_text() == edited and files[0].read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("case", ["dense", "sinks", "recompute"])
def test_the_record_holds_the_map_and_both_losses_and_opens_again(case, tmp_path):
    controller = controller_of(ASKED[case], query=40)
    record = open_record(save_record(view_record(controller), tmp_path / "view.nc"))
    np.testing.assert_array_equal(record.attention_map.values[0, 0, 0], shown_map(controller))
    names = ["dense"] if case == "dense" else ["dense", controller.name]
    assert record.policy.values.tolist() == names and record.attrs["setting"] == controller.name
    for name, reading in zip(names, (controller.dense.reading, controller.now.reading), strict=False):
        np.testing.assert_array_equal(record.nll.sel(policy=name)[0], reading.losses)
    assert record.token_text.values[0].tolist() == controller.tokens
    again = SavedMaps(record)
    assert [str(unit) for unit in again.units] == ["layer 1, head 2"]
    assert (again.first, again.length) == (controller.maps.first, controller.maps.length)
    whole = slice(0, again.cells)
    np.testing.assert_array_equal(again.probabilities(0, whole, whole), shown_map(controller))
    assert record.attrs["model"] == "LlamaForCausalLM" and record.attrs["tokens"] == 60


def test_the_dense_map_of_the_record_is_that_of_eager_attention():
    record = view_record(controller_of(Configuration()))
    expected = eager_maps("llama", {"input_ids": text()[None]})[0, 1, 2]
    np.testing.assert_allclose(record.attention_map.values[0, 0, 0], np.where(np.tri(60), expected, np.nan), atol=1e-5)


@pytest.mark.slow
def test_saving_writes_a_figure_in_three_formats_the_record_and_the_code(tmp_path):
    controller = controller_of(CONFIGURATIONS["window"][0])
    files = save_view(controller, tmp_path / "new" / "folder", "sinkscope.read_tokens(tokenizer, limit=60)")
    assert [file.name for file in files] == NAMES and sorted(files) == sorted((tmp_path / "new/folder").iterdir())
    starts = [b"%PDF", b"<?xml", b"\x89PNG", b"\x89HDF"]
    assert all(file.read_bytes().startswith(start) for file, start in zip(files, starts, strict=False))
    code = code_of(controller, "sinkscope.read_tokens(tokenizer, limit=60)")
    assert unsealed(files[-1].read_bytes(), ".py") == code.encode()


@pytest.mark.slow
def test_a_home_folder_may_be_named_by_its_sign(tmp_path, monkeypatch, an_empty_figure):
    monkeypatch.setenv("HOME", str(tmp_path))
    controller = controller_of(Configuration())
    assert save_view(controller, "~/explored")[0] == tmp_path / "explored" / "view.pdf"
    assert len(save_view(controller, "~/explored")) == len(list((tmp_path / "explored").iterdir())) == 5  # and again


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_where_no_folder_can_be_nothing_is_written(place, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SinkscopeError, match="cannot write to"):
        save_view(controller_of(Configuration()), tmp_path / place)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_cannot_be_written_leaves_no_half_of_itself_behind(name, tmp_path, an_empty_figure):
    (tmp_path / name).mkdir()  # in the way of the file
    with pytest.raises(SinkscopeError, match="cannot write"):
        save_view(controller_of(Configuration()), tmp_path)
    assert {each.name for each in tmp_path.iterdir()} <= set(NAMES)
    before = NAMES[: NAMES.index(name)]
    assert all((tmp_path / each).stat().st_size > 0 for each in before)
    assert not any((tmp_path / each).exists() for each in NAMES[NAMES.index(name) + 1 :])


def test_before_anything_was_read_there_is_nothing_to_save(tmp_path):
    empty = Controller(reader(), [""] * TOKENS)
    for act in (lambda: view_record(empty), lambda: save_view(empty, tmp_path / "new")):
        with pytest.raises(SinkscopeError, match="nothing was read yet"):
            act()
    assert not (tmp_path / "new").exists()
    with pytest.raises(SinkscopeError, match="nothing was read yet"):
        code_of(empty)


def test_a_closed_explorer_has_nothing_to_save(tmp_path):
    closed = Controller(reader(), [""] * TOKENS)
    closed.close()
    for act in (lambda: view_record(closed), lambda: save_view(closed, tmp_path / "new"), lambda: code_of(closed)):
        with pytest.raises(SinkscopeError, match="the explorer is closed"):
            act()
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_saved_record_is_saved_again_without_code(tmp_path, an_empty_figure):
    maps = random_maps(20)
    saved = Controller(None, [f"word{place}" for place in range(20)], saved=maps)
    files = save_view(saved, tmp_path)
    assert [file.name for file in files] == NAMES[:4]
    record = open_record(tmp_path / "view.nc")
    np.testing.assert_array_equal(record.attention_map.values[0, 0, 0], maps.weights)
    assert "nll" not in record and record.attrs["setting"] == "saved record"
    with pytest.raises(SinkscopeError, match="without its model"):
        code_of(saved)

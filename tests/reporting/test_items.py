"""Items and sections written outside the package: with a probe, a figure, a table and a sentence of their own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure

import sinkscope
from sinkscope import ITEMS, SECTIONS, Item, Report, Section, SinkscopeError, Table, figures
from sinkscope.probes import HiddenProbe, Variable
from sinkscope.reporting.page import page
from tests.reporting.byte_tokens import byte_tokenizer
from tests.support import naive_record
from tests.support.model_state import state_of
from tests.support.zoo import build

TEXT = "In the beginning God created the heaven and the earth.\n" * 8


@dataclass(frozen=True)
class Kurtosis(HiddenProbe):
    """How heavy the tails of a token's hidden state are."""

    makes: ClassVar = {"kurtosis": Variable(("sequence", "token"), units="1")}

    def observe_hidden(self, hidden: torch.Tensor):
        return {"kurtosis": kurtosis_of(hidden)}


def kurtosis_of(hidden: torch.Tensor) -> torch.Tensor:
    centred = hidden - hidden.mean(-1, keepdim=True)
    return (centred**4).mean(-1) / (centred**2).mean(-1) ** 2


def by_layer(record: xr.Dataset) -> pd.DataFrame:
    return record["kurtosis"].mean(["sequence", "token"]).to_dataframe("kurtosis").reset_index()


def drawn(record: xr.Dataset) -> Figure:
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot(by_layer(record)["kurtosis"])
    return figure


KURTOSIS = Item(
    name="kurtosis",
    variables="kurtosis",
    probes=(Kurtosis(),),
    figure=drawn,
    table=by_layer,
    sentence=lambda record, table: f"The largest of {len(table)} layers has {table['kurtosis'].max():.3f}.",
    numbers=lambda record: [{"quantity": "kurtosis", "value": float(record["kurtosis"].mean())}],
    meaning="The fourth moment of the numbers in a hidden state <over> the square of the second.",
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    place = tmp_path_factory.mktemp("texts") / "genesis.txt"
    place.write_text(TEXT)
    return place


def measured(model, path, **options) -> Report:
    sizes = {"sequences": 2, "length": 40, "streaming": False, "softmax": False, "progress": False}
    return sinkscope.report(model, byte_tokenizer(False), path, **sizes | options)


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, bos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def report(model, path) -> Report:
    return measured(model, path, items=[*ITEMS, KURTOSIS])


@pytest.mark.slow
def test_an_item_with_a_probe_of_its_own_shows_what_the_probe_measured(report, model):
    ids = torch.as_tensor(report.records["text"]["token_id"].values)
    behind = []
    hooks = [layer.register_forward_hook(lambda *given: behind.append(given[2])) for layer in model.model.layers]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    expected = [float(kurtosis_of(each).mean()) for each in behind]
    np.testing.assert_allclose(report.tables["kurtosis"]["kurtosis"], expected, rtol=1e-5)
    assert report.finding("kurtosis") == f"The largest of 3 layers has {max(expected):.3f}."
    assert "kurtosis" in report.figures and report.notes == []
    row = report.tables["summary"].set_index("quantity").loc["kurtosis"]
    assert row.value == pytest.approx(np.mean(expected), rel=1e-5) and row.measured_on == "2 × 40 tokens"
    np.testing.assert_allclose(report.figures["kurtosis"].axes[0].lines[0].get_ydata(), expected, rtol=1e-5)


@pytest.mark.slow
def test_it_stands_in_the_page_and_in_the_files_and_is_opened_again(report, tmp_path):
    out = report.save(tmp_path / "out", progress=False)
    text = re.sub(r"<script.*?</script>", "", (out / "report.html").read_text(), flags=re.S)
    for words in (report.finding("kurtosis"), 'id="kurtosis"', 'href="figures/kurtosis.pdf"', "&lt;over&gt;",
                  'href="tables/kurtosis.csv"', '<h3>Kurtosis</h3>'):  # fmt: skip
        assert words in text
    part = text[text.index('<section class="plate" id="kurtosis">') :]
    assert 'src="data:image/png;base64,' in part[: part.index("</section>")]
    assert text.index("Where attention goes</h2>") < text.index('id="kurtosis"')
    listed = json.loads((out / "manifest.json").read_text())["files"]
    assert {f"figures/kurtosis.{kind}" for kind in ("pdf", "svg", "png")} <= set(listed)
    np.testing.assert_allclose(
        pd.read_csv(out / "tables/kurtosis.csv")["kurtosis"], report.tables["kurtosis"]["kurtosis"]
    )
    again = Report.open(out, items=[*ITEMS, KURTOSIS])
    pd.testing.assert_frame_equal(again.tables["kurtosis"], report.tables["kurtosis"])
    assert again.finding("kurtosis") == report.finding("kurtosis")
    assert "kurtosis" not in Report.open(out).figures


@pytest.mark.slow
def test_its_probe_costs_no_further_pass(model, path):
    passes = []
    hook = model.model.register_forward_hook(lambda *_: passes.append(0))
    measured(model, path)
    usual = len(passes)
    measured(model, path, items=[*ITEMS, KURTOSIS])
    hook.remove()
    assert usual > 0 and len(passes) == 2 * usual


@pytest.mark.slow
def test_items_that_are_left_out_of_the_list_are_not_shown(model, path):
    some = [item for item in ITEMS if item.name in ("norms", "mass_by_layer")]
    made = measured(model, path, items=[*some, KURTOSIS], streaming=True, softmax=True)
    assert list(made.figures) == ["mass_by_layer", "norms", "kurtosis"]
    assert list(made.tables) == ["summary", "mass_by_layer", "kurtosis"]
    assert not {"perplexity", "forced"} & set(made.records) and made.notes == []  # nothing reads them


@pytest.mark.slow
def test_what_no_record_serves_is_left_out_with_the_reason():
    causal = Item("reach", record="text", figure=drawn, causal_only=True)
    elsewhere = Item("losses", record="perplexity", table=by_layer)
    made = Report(naive_record.norms_only().assign_attrs(causal=0), items=[*ITEMS, KURTOSIS, causal, elsewhere])
    assert list(made.figures) == ["norms"] and made.notes == [
        "`kurtosis` was left out: the record `text` holds no kurtosis.",
        "`reach` was left out: it is defined by causal attention, and this model reads a text both ways.",
        "`losses` was left out: there is no record `perplexity`.",
    ]
    assert made.notes[0] in page(made.content, []) and made.finding("kurtosis") == ""


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([*ITEMS, KURTOSIS, KURTOSIS], "two items of a report are named `kurtosis`"),
        ([*ITEMS, Item("norms", figure=drawn)], "two items of a report are named `norms`"),
        ([*ITEMS, Item("mine", table=Table(by_layer, "top_heads"))], "named `top_heads`"),
        ([*ITEMS, Item("summary", table=by_layer)], "named `summary`"),
        ([*ITEMS, Item("mine", record="novel", table=by_layer)], "reads the record `novel`, which no section makes"),
        ([*ITEMS, Item("mine", record="perplexity", table=by_layer, probes=Kurtosis())], "is not measured by probes"),
        ([*ITEMS, Kurtosis()], r"Kurtosis\(\) is not an item"),
    ],
)
def test_items_that_do_not_fit_are_refused_before_a_model_is_loaded(items, message):
    with pytest.raises(SinkscopeError, match=message):
        sinkscope.report("/no/such/model", items=items)


@pytest.mark.parametrize("name", ["../../evil", "a b", "", "naïve", None])
def test_a_name_that_is_no_name_of_a_file_is_refused(name):
    with pytest.raises(SinkscopeError, match="cannot name a file"):
        Item(name, figure=drawn)


def test_an_item_that_shows_nothing_is_refused():
    with pytest.raises(SinkscopeError, match="`mine` shows nothing"):
        Item("mine")


@pytest.mark.slow
def test_a_figure_is_drawn_when_it_is_asked_for_and_once():
    calls = []

    def figure(record: xr.Dataset) -> Figure:
        calls.append(record)
        return drawn(record)

    record = naive_record.norms_only().assign(kurtosis=naive_record.record()["key_norm"])
    made = Report(record, items=[Item("one", variables="kurtosis", figure=figure)])
    assert "one" in made.figures and "other" not in made.figures and list(made.figures) == ["one"]
    assert "one" in repr(made) and not calls
    assert made.figures["one"] is made.figures["one"] and len(calls) == 1
    page(made.content, [])
    assert len(calls) == 1


@pytest.mark.slow
def test_the_page_draws_no_figure_that_the_browser_draws(monkeypatch):
    plain = Item("plain", "A picture", figure=lambda record: figures.norms(record))  # nothing describes it
    made = Report(naive_record.record(), items=[*ITEMS, plain])
    page(made.content, [])
    assert list(made.figures._made) == ["plain"]


def test_a_sentence_without_a_figure_stands_in_the_page_with_its_title():
    said = Item("heads", "How many <heads>", sentence=lambda record, table: f"{record.sizes['kv_head']} of them.")
    text = page(Report(naive_record.norms_only(), items=[said]).content, [])
    assert "How many &lt;heads&gt;</h3>" in text and ">2 of them.</p>" in text and 'id="plot-heads"' not in text


def lengths_of(passes) -> dict[str, xr.Dataset]:
    record = passes.measure("mine", passes.rows[:, :20], [Kurtosis()])
    return {"mine": record}


MINE = Section(
    "Tails of hidden states",
    [Item("tails", record="mine", figure=drawn, table=by_layer, variables="kurtosis")],
    lengths_of,
    headline=lambda records: "Tails were measured." if "mine" in records else "",
)


@pytest.mark.slow
def test_a_section_from_outside_is_measured_shown_saved_and_opened(model, path, tmp_path):
    made = measured(model, path, sections=[*SECTIONS, MINE])
    assert made.records["mine"].sizes["token"] == 20 and made.records["mine"].attrs["text"] == "genesis.txt"
    assert made.headline.endswith(" Tails were measured.") and "tails" in made.tables
    out = made.save(tmp_path / "out", progress=False)
    assert "Tails of hidden states</h2>" in (out / "report.html").read_text()
    again = Report.open(out, sections=[*SECTIONS, MINE])
    pd.testing.assert_frame_equal(again.tables["tails"], made.tables["tails"])
    assert "mine" not in Report.open(out).records


@pytest.mark.slow
def test_a_section_that_cannot_be_measured_is_noted_and_the_rest_is_there(model, path):
    def refused(passes):
        raise SinkscopeError("there is a reason.")

    whole = Section("Nothing", [Item("none", record="none", table=by_layer)], refused)
    part = Section("Less", [Item("less", record="less", table=by_layer)], lambda passes: {"less": lambda: refused(0)})
    made = measured(model, path, sections=[*SECTIONS, whole, part, MINE])
    assert "mine" in made.records and made.notes == [
        "Nothing was not measured: there is a reason.",
        "The record `less` was not measured: there is a reason.",
        "`none` was left out: there is no record `none`.",
        "`less` was left out: there is no record `less`.",
    ]


def test_two_sections_of_one_record_are_refused():
    other = Section("Other", [Item("other", record="mine", table=by_layer)], lengths_of)
    with pytest.raises(SinkscopeError, match="two sections of a report make the record `mine`"):
        sinkscope.report("/no/such/model", sections=[*SECTIONS, MINE, other])
    with pytest.raises(SinkscopeError, match="is not a section"):
        sinkscope.report("/no/such/model", sections=[*SECTIONS, KURTOSIS])


def test_a_probe_that_a_model_cannot_carry_is_refused_by_name(path):
    with pytest.raises(SinkscopeError, match="is not a probe"):
        measured(build("llama"), path, items=[*ITEMS, Item("mine", figure=drawn, probes="kurtosis")])


@pytest.mark.slow
def test_a_record_that_an_item_only_reads_beside_its_own_is_opened_too(tmp_path):
    both = Item(
        "both",
        variables="key_norm",
        beside="other",
        table=lambda record, other: pd.DataFrame({"rows": [0 if other is None else other.attrs["rows"]]}),
    )
    other = naive_record.norms_only().assign_attrs(rows=7)
    made = Report({"text": naive_record.norms_only(), "other": other}, items=[both])
    made.save(tmp_path / "out", progress=False)
    again = Report.open(tmp_path / "out", items=[both])
    assert list(again.records) == ["text", "other"] and again.tables["both"]["rows"].tolist() == [7]


def boom(*given):
    raise ValueError("boom")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"figure": boom}, "the figure of `own` could not be made: it raised ValueError: boom"),
        ({"figure": lambda record: None}, "the figure of `own` is a NoneType; give a matplotlib Figure"),
        ({"table": boom}, "the table of `own` could not be made: it raised ValueError: boom"),
        ({"table": lambda record: by_layer(record)["kurtosis"]}, "the table of `own` is a Series; give a pandas"),
        ({"table": lambda record: {"a": 1}}, "the table of `own` is a dict; give a pandas DataFrame"),
        ({"sentence": boom}, "the sentence of `own` could not be made: it raised ValueError: boom"),
        ({"sentence": lambda record, table: 3.5}, "the sentence of `own` is a float; give words"),
        ({"numbers": boom}, "the numbers of `own` could not be made: it raised ValueError: boom"),
        ({"numbers": lambda record: {"quantity": "a", "value": 1}}, "the numbers of `own` are a dict; give a list"),
        ({"numbers": lambda record: [{"quantity": "a"}]}, "the numbers of `own` have the row {'quantity': 'a'}"),
        ({"numbers": lambda record: [{"quantity": "a", "value": "high"}]}, "the numbers of `own` have the row"),
    ],
)
def test_an_item_that_fails_is_noted_by_name_and_the_rest_of_the_report_stands(part, message, tmp_path):
    record = naive_record.norms_only().assign(kurtosis=naive_record.record()["key_norm"])
    made = Report(record, items=[Item("own", **part), Item("fine", table=lambda record: pd.DataFrame({"a": [1]}))])
    out = made.save(tmp_path / "out", progress=False)
    assert len(made.notes) == 1 and message in made.notes[0] and "\n" not in made.notes[0]
    assert (out / "tables/fine.csv").exists() and "own could not" not in (out / "manifest.json").read_text()
    assert "of `own`" in (out / "report.html").read_text()


def test_what_a_section_runs_is_records_or_noted(model, path):
    def own(name, run):
        return Section(name, [Item(name.lower(), record=name.lower(), table=by_layer)], run)

    sections = [own("A", lambda passes: None), own("B", lambda passes: {"b": 3}), own("C", boom)]
    notes = measured(model, path, sections=[*SECTIONS, *sections]).notes
    assert notes[:3] == [
        "A was not measured: its run gave a NoneType; give a dict from names to records.",
        "The record `b` was not measured: the record `b` is a int; give an xarray.Dataset.",
        "C was not measured: it raised ValueError: boom",
    ]


def test_probes_that_cannot_be_hashed_are_measured(model, path):
    @dataclass
    class Open(HiddenProbe):
        makes: ClassVar = Kurtosis.makes
        power: int = 2

        observe_hidden = Kurtosis.observe_hidden

    item = Item("own", variables="kurtosis", probes=[Open(), Open()], table=by_layer)
    assert len(measured(model, path, items=[item]).tables["own"]) == 3


def test_a_hook_that_a_section_leaves_is_taken_off_and_noted(model, path):
    def run(passes):
        passes.model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
        return lengths_of(passes)

    before = state_of(model)
    section = Section("Mine", [Item("mine", record="mine", table=by_layer)], run)
    notes = measured(model, path, sections=[*SECTIONS, section]).notes
    assert notes[0].startswith("Mine was not measured: the section `Mine` left a hook on model.layers.1.mlp")
    assert state_of(model) == before

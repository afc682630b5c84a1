"""The section on what sinks are for: measured with other sections' records, and said as the numbers have it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import LlamaConfig, LlamaForCausalLM

import sinkscope
from sinkscope.hf.tiny import tiny_model
from sinkscope.reporting.document import Report
from sinkscope.reporting.purposes import (
    accounts_table,
    longest_lived,
    say_accounts,
    say_depth,
    say_kinds,
    say_reach,
    say_secondary,
    secondary,
)
from tests.reporting.byte_tokens import byte_tokenizer
from tests.support import naive_record
from tests.support.synthetic import secondary_record

SHOWN = ("purposes", "two_accounts", "head_reach", "depth")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("Go, see the light. It is good;\n" * 90, encoding="utf-8")
    return path


def _model(family: str = "llama") -> torch.nn.Module:
    torch.manual_seed(0)
    if family != "llama":
        model = tiny_model(family).eval()
        model.resize_token_embeddings(300)
        return model
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, num_key_value_heads=2, **sizes)).eval()


def _report(text, model, **options):
    given = {"segments": 2, "length": 300, "streaming": False, "progress": False} | options
    return sinkscope.report(model, byte_tokenizer(True), text, **given)


@pytest.mark.slow
def test_a_report_has_the_section_from_passes_that_run_anyway(text):
    model = _model()
    made = _report(text, model)
    assert {*SHOWN, "secondary_sinks"} <= set(made.tables) and {*SHOWN} - {"purposes"} <= set(made.figures)
    assert "gates" not in made.tables and made.notes == []
    for name in SHOWN:
        assert made.finding(name).endswith(".") and made.figures.get(name, True)
    probes = [sinkscope.SinkPurpose(), sinkscope.Reach(windows=(18, 75)), sinkscope.Compression()]
    ids = torch.as_tensor(made.records["text"]["token_id"].values)
    alone = sinkscope.measure(model, ids, probes, progress=False)
    for name in alone.data_vars:
        np.testing.assert_allclose(made.records["text"][name], alone[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert "lost_value" not in made.records["text"] and "reach" not in made.records["forced"]
    summary = made.tables["summary"].set_index("quantity")["value"]
    table = sinkscope.purposes(made.records["text"])
    assert summary["heads with a no-op sink"] == (table["kind"] == "no-op").mean()
    assert summary["heads that could stream"] == pytest.approx(
        (sinkscope.reach_table(made.records["text"])["kind"] == "streaming").mean()
    )


@pytest.mark.slow
def test_gates_are_shown_where_the_model_has_them(text):
    made = _report(text, _model("afmoe"), softmax=False)
    table = made.tables["gates"]
    assert len(table) and f"Over {len(table)} gated heads" in made.finding("gates")
    assert not [note for note in made.notes if "ates" in note]


@pytest.mark.slow
def test_a_model_without_w_o_leaves_out_kinds_alone_and_says_why(text):
    made = _report(text, _model("bitnet"))
    assert {"purposes", "two_accounts"} & set(made.tables) == set() and {"head_reach", "depth"} <= set(made.tables)
    (note,) = (each for each in made.notes if "W_O" in each)
    assert note.startswith("What sinks are for was not measured") and "bitnet" in note.lower()
    assert "forced" in made.records


def test_a_record_without_it_shows_none_of_it_and_needs_no_note():
    report = Report(naive_record.record())
    assert not {"purposes", "head_reach"} & set(report.tables)
    assert not [note for note in report.notes if "purposes" in note]


def _planted(ratios, shares, ranks=None, values=None) -> xr.Dataset:
    """A record of heads [sequence, layer, head] with these numbers in one layer of every text."""
    shares, ratios = np.atleast_2d(shares)[:, None], np.atleast_2d(ratios)[:, None]
    dims = ("sequence", "layer", "head")
    parts = {"sink_share": shares, "sink_norm_ratio": ratios, "output_stable_rank": np.ones_like(ratios)}
    parts |= {"sink_key": np.zeros(ratios.shape, dtype=int), "sink_mean": shares}
    found = {name: (dims, each) for name, each in parts.items()}
    if values is not None:
        lost = np.broadcast_to(np.asarray(values)[None, None, :, None], (*ratios.shape, 3))
        found |= {"lost_value": ((*dims, "query"), lost), "lost_denominator": ((*dims, "query"), 1 - lost)}
    coords = {dim: np.arange(size) for dim, size in zip(dims, ratios.shape, strict=True)}
    coords |= {"token": np.arange(3), "evicted_key": [0]}
    return xr.Dataset(found, coords=coords, attrs={"causal": 1, "model": "planted"})


def test_the_sentence_counts_kinds_and_what_a_moved_threshold_makes_of_them():
    record = _planted([[0.1, 0.19, 0.21, 1.0, 0.3], [0.1, 0.19, 0.21, 1.0, 0.3]], [[1, 1, 1, 1, 0.2]] * 2)
    said = say_kinds(record, sinkscope.purposes(record))
    assert "Of 5 heads 4 have a sink: 2 no-op, 1 broadcast, 1 neither; its key is the first token in 4." in said
    assert "4 of them are of one kind in every sequence" in said
    assert "no-op in 1 to 3" in said and said.endswith("and broadcast in 1.")
    none = _planted([[0.1, 0.3]], [[0.2, 0.1]])
    assert say_kinds(none, sinkscope.purposes(none)).startswith("None of 2 heads has a sink")


@pytest.mark.parametrize(("values", "longer"), [((0.1, 0.2, 0.9), (0, 1)), ((0.9, 0.2, 0.1), (1, 0))])
def test_the_two_accounts_are_told_as_they_agree_or_do_not(values, longer):
    record = _planted([[0.1, 0.15, 0.9]], [[1, 1, 1]], values=values)
    table = accounts_table(record)
    np.testing.assert_allclose(table["lost_value"], values)
    said = say_accounts(record, table)
    assert f"a no-op, the lost value is the longer part in {longer[0]} of 2 heads" in said
    assert f"a broadcast, the lost value is the longer part in {longer[1]} of 1 heads" in said
    assert "neither" not in said


def test_reach_is_said_with_its_null():
    record = sinkscope.measure(
        _model(), torch.arange(80)[None] % 50 + 3, [sinkscope.Reach(sinks=(0, 4), windows=(8, 16))], progress=False
    )
    table = sinkscope.reach_table(record)
    said = say_reach(record, table)
    streaming = int((table["kind"] == "streaming").sum())
    assert f"{streaming} of 8 heads lose at most 10%" in said and f"{8 - streaming} need more" in said
    assert "4 sinks and the last 16 tokens" in said and "uniform attention over 1 × 80 tokens" in said


def test_depth_is_said_as_its_table_has_it():
    record = sinkscope.measure(_model(), torch.arange(80)[None] % 50 + 3, [sinkscope.Compression()], progress=False)
    table = sinkscope.depth_table(record)
    said = say_depth(record, table)
    assert f"lowest behind layer {table.layer[table.matrix_entropy.idxmin()]} (" in said
    assert f"longest behind layer {table.layer[table.first_norm.idxmax()]} (" in said and "hold on" not in said
    table["sink_rate"] = [0.25, 0.5]
    assert said in say_depth(record, table) and "in layer 1 (50% of them)" in say_depth(record, table)


def test_secondary_sinks_are_counted_and_the_longest_lived_listed():
    record = secondary_record()
    table = longest_lived(record)
    assert table["position"].tolist() == [4, 7] and table["kind"].tolist() == ["primary", "secondary"]
    said = say_secondary(sinkscope.secondary_sinks(record))
    assert "The number of secondary sinks in a sequence is 1.00 on average: " in said  # one text has no interval
    assert "in more than 4 and fewer than 11 of 26 layers" in said
    assert "Of 3 tokens that are parallel somewhere 1 are so in 11 layers or more." in said
    assert "the share of the other tokens that are parallel to it is 0.026" in said  # 3 of 6 x 19
    (row,) = secondary(record)
    assert row["value"] == 1.0 and row["quantity"] == "secondary sinks"


def test_a_model_of_few_layers_has_no_count_of_secondary_sinks():
    record = sinkscope.measure(
        _model(), torch.arange(80)[None] % 50 + 3, [sinkscope.Compression(), sinkscope.FirstCosine()], progress=False
    )
    assert secondary(record) == []
    assert "do not tell secondary sinks apart in a model of 2" in say_secondary(sinkscope.secondary_sinks(record))

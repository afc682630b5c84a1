"""report(): from a model and a text to a Report, on a tiny random Llama."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import sinkscope
from sinkscope.errors import SinkscopeError
from sinkscope.hf.tiny import tiny_model
from sinkscope.reporting import gather, streaming
from sinkscope.reporting.document import SECTIONS
from sinkscope.reporting.passes import Passes
from tests.reporting.byte_tokens import byte_tokenizer
from tests.support.zoo import build, inputs

CAUSAL = {"text": xr.Dataset(attrs={"causal": 1})}
TEXT = "In the beginning God created the heaven and the earth. <b>汉字</b>\n"


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96, bos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "some text.txt"
    path.write_text(TEXT * 8, encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("bos", [False, True])
def test_three_records_come_from_one_text(llama, text, bos):
    made = sinkscope.report(llama, byte_tokenizer(bos), text, sequences=3, length=80, softmax=False, progress=False)
    sizes = {name: dict(record.sizes) for name, record in made.records.items()}
    assert (sizes["text"]["sequence"], sizes["text"]["token"]) == (3, 80)
    assert sizes["short"]["token"] == 64 and sizes["sentences"]["token"] == 16
    stream = np.frombuffer((TEXT * 8).encode(), dtype=np.uint8)
    tokens = made.records["text"]["token_text"].values
    assert "".join(tokens[0][int(bos) :]).startswith("In the beginning")
    assert made.records["text"].attrs["bos"] == ("yes" if bos else "no")
    assert made.records["short"]["token_text"].values[0, 30] == chr(stream[30 - bos])
    assert made.records["text"].attrs["text"] == "some text.txt"
    assert made.notes == []
    maps = llama_maps(llama, made.records["text"]["token_id"].values)
    expected = 100 * maps[:, :, :, 1:, 0].mean()
    assert f"{expected:.1f}%" in made.headline


def llama_maps(model, ids: np.ndarray) -> np.ndarray:
    """[sequence, layer, head, query, key] by transformers' own eager attention."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(torch.as_tensor(ids), output_attentions=True).attentions
    model.set_attn_implementation(implementation)
    return torch.stack(maps, dim=1).double().numpy()


@pytest.mark.slow
def test_a_model_with_fewer_positions_gets_shorter_sequences_and_a_note(llama, text):
    made = sinkscope.report(llama, byte_tokenizer(False), text, sequences=2, length=1024, softmax=False, progress=False)
    assert made.records["text"].sizes["token"] == 96
    assert "96 tokens" in made.notes[0] and "1,024" in made.notes[0]


@pytest.mark.slow
def test_whisper_has_positions_of_its_own_name_and_no_pass_reads_beyond_them(text):
    model = tiny_model("whisper")
    model.resize_token_embeddings(300)
    positions = model.get_decoder().embed_positions.num_embeddings
    made = sinkscope.report(model, byte_tokenizer(False), text, sequences=1, length=positions + 1, progress=False)
    assert made.records["text"].sizes["token"] == positions and "no more positions" in made.notes[0]
    assert not any("it raised" in note for note in made.notes) and "forced" in made.records


@pytest.mark.slow
def test_a_short_text_gives_fewer_or_shorter_sequences_and_a_note(llama, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("x" * 50)
    made = sinkscope.report(llama, byte_tokenizer(False), path, sequences=8, length=64, progress=False)
    assert made.records["text"].sizes["token"] == 50 and "short" not in made.records
    assert "50 tokens" in made.notes[0] and "no intervals" in made.notes[0]
    assert made.notes[1] == "Streaming was not measured: it needs 128 tokens, and there are 50."
    assert made.notes[2] == "What softmax forces was not measured: it needs 64 tokens, and there are 50."
    assert "perplexity" not in made.records and "forced" not in made.records
    made = sinkscope.report(llama, byte_tokenizer(False), path, sequences=8, length=20, streaming=False,
                            softmax=False, progress=False)  # fmt: skip
    assert len(made.notes) == 1
    assert made.records["text"].sizes["sequence"] == 2 and "2 of 8" in made.notes[0]


@pytest.mark.usefixtures("one_format")
@pytest.mark.slow
def test_the_report_so_far_is_given_from_the_main_record_on(llama, text, tmp_path):
    given = []

    def each(made):
        given.append((list(made.records), made.notes))
        made.save(tmp_path / "growing", prints=False, progress=False)
        assert {path.name for path in (tmp_path / "growing").iterdir()} == {"report.html", "records", "manifest.json"}
        assert f"{SECTIONS[3].title}." in (tmp_path / "growing/report.html").read_text()

    sections = (SECTIONS[0], SECTIONS[2], SECTIONS[3])
    options = {"sequences": 2, "length": 24, "progress": False, "sections": sections}
    made = sinkscope.report(llama, byte_tokenizer(False), text, **options, each=each)
    (first, notes), (second, later) = given  # not again where the first section ends
    assert first == ["text"]
    begun = [name for name in made.records if name in SECTIONS[0].records]
    behind = [SECTIONS[0].records[name] for name in begun[1:]]
    assert behind and notes[0] == f"Still to come: {'; '.join([*behind, SECTIONS[2].title, SECTIONS[3].title])}."
    assert set(begun) < set(second) and later[0] == f"Still to come: {SECTIONS[3].title}."
    assert not any("to come" in note for note in made.notes)
    made.save(tmp_path / "growing", progress=False)  # in the place of what was saved before
    assert (tmp_path / "growing/figures").is_dir() and "forced" in sinkscope.Report.open(tmp_path / "growing").records


def test_a_text_too_short_to_measure_is_a_clear_error(llama, tmp_path):
    path = tmp_path / "tiny.txt"
    path.write_text("short")
    with pytest.raises(SinkscopeError, match=r"5 tokens.*at least 8"):
        sinkscope.report(llama, byte_tokenizer(False), path)
    path.write_text("  \n ")
    with pytest.raises(SinkscopeError, match="no text"):
        sinkscope.report(llama, byte_tokenizer(False), path)


def test_a_wrong_text_is_told_before_the_model_is_loaded():
    with pytest.raises(SinkscopeError, match=r"/no/such/text\.txt"):
        sinkscope.report("/no/such/model", text="/no/such/text.txt")


def test_sections_without_the_main_record_and_what_is_no_function_are_refused_before_anything_is_read():
    with pytest.raises(SinkscopeError, match="no section makes the main record `text`"):
        sinkscope.report("/no/such/model", sections=SECTIONS[2:3])
    with pytest.raises(SinkscopeError, match="each=3 is no function"):
        sinkscope.report("/no/such/model", each=3)


@pytest.mark.parametrize("wrong", [{"length": 4}, {"length": 0}, {"sequences": 0}])
def test_sizes_that_measure_nothing_are_refused(llama, text, wrong):
    with pytest.raises(SinkscopeError, match=r"length|sequences"):
        sinkscope.report(llama, byte_tokenizer(False), text, **wrong)


def test_a_model_without_a_tokenizer_is_a_clear_error(llama, text):
    with pytest.raises(SinkscopeError, match="tokenizer"):
        sinkscope.report(llama, None, text)


def test_an_encoder_gives_a_reduced_report(text):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    made = sinkscope.report(
        BertModel(config).eval(), byte_tokenizer(False), text, sequences=2, length=48, progress=False
    )
    assert made.records["text"].attrs["causal"] == 0 and "short" not in made.records
    assert "sink_mass_heatmap" in made.figures and "sink_rate_curve" not in made.figures
    assert all("encoder" in note for note in made.notes[-2:]) and not {"perplexity", "forced"} & set(made.records)
    summary = made.tables["summary"].set_index("quantity")
    assert summary.loc["mass on the first token", "null"] == pytest.approx(1 / 48)


@pytest.mark.slow
@pytest.mark.parametrize("bos", [False, True])
def test_streaming_is_measured_on_one_continuous_text_where_it_is_short(llama, text, bos):
    made = sinkscope.report(llama, byte_tokenizer(bos), text, sequences=1, length=20, softmax=False, progress=False)
    assert [name for name in made.records if name not in ("short", "sentences")][1:] == [
        "perplexity",
        "other_bos_losses",
        "ablation",
        "decode",
    ]
    curve = made.records["perplexity"]
    tokens = len((TEXT * 8).encode()) + bos
    assert curve.sizes["token"] == tokens and curve.attrs["bos"] == ("yes" if bos else "no")
    assert list(curve["policy"].values) == ["dense", "window 64", "recompute 64", "sinks 4+60"]
    assert list(curve["scored"].values) == [tokens - 1, tokens - 1, 64 + 128, tokens - 1]
    with torch.no_grad():
        ids = torch.as_tensor(curve["token_id"].values)
        logits = llama(ids).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    np.testing.assert_allclose(curve["nll"].values[0, 0, 1:], expected, atol=1e-4)
    assert list(made.tables["ablation"]["sinks"]) == [0, 1, 2, 4, 8]
    assert set(made.tables["decode_cost"]["cache_size"]) == {64}
    for name in ("perplexity", "ablation", "decode"):
        assert made.records[name].attrs["text"] == "some text.txt" and made.records[name].attrs["kind"] == name
    assert {"log_perplexity", "ablation", "decode_cost"} <= set(made.figures)
    costs = made.tables["four_policies"]
    assert list(costs["attention_size"]) == [tokens, 65, 64, 65] and costs["ppl"].notna().all()
    assert "With a cache of 64 tokens" in made.headline and made.notes == []


def test_the_sizes_grow_with_the_text_up_to_those_of_a_long_one():
    model = build("llama")
    assert streaming.sizes_of(model, 200) == (1, 200, 64)
    assert streaming.sizes_of(model, 3 * 384) == (1, 3 * 384, 128)
    assert streaming.sizes_of(model, 4 * 384 - 1, 1) == (4, 384, 128)
    assert streaming.sizes_of(model, 10_000) == (8, 384, 128)
    assert streaming.timed_caches(model, 3072, 128) == [256] and streaming.timed_caches(model, 100, 64) == [64]
    model.config.max_position_embeddings = 8192
    assert streaming.timed_caches(model, 3072, 128) == [256, 512, 1024]


@pytest.mark.slow
def test_losses_are_of_segments_from_all_over_a_text():
    model, ids = build("llama"), torch.randint(3, 120, (4000,), generator=torch.Generator().manual_seed(0))
    records, _ = streaming_records(model, ids)
    curve = records["perplexity"]
    assert curve["token_id"][:, 0].values.tolist() == ids[::500].tolist()
    again = sinkscope.perplexity(model, sinkscope.segments(ids, 384, 8), [sinkscope.Window(128)], progress=False)
    np.testing.assert_allclose(curve["nll"].sel(policy="window 128"), again["nll"][0], atol=1e-5)
    assert "over 8 sequences" in sinkscope.ppl_table(curve).attrs["bounds"]


def streaming_records(model, ids):
    """The records of the section and its notes, of one text [token] without a token in front."""
    return gather._measured(streaming.STREAMING, Passes(model, None, ids, ids[None], progress=False), CAUSAL)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_models_with_learned_positions_get_no_streaming_section_and_a_note(family, text):
    ids = inputs(family, 1, 400)["input_ids"][0]
    records, notes = streaming_records(build(family), ids)
    assert records == {} and len(notes) == 1
    assert notes[0].startswith("Streaming was not measured: ") and "position" in notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mpt", "gemma2", "falcon_alibi"])
def test_families_that_can_be_streamed_get_all_three_records(family):
    ids = inputs(family, 1, 140)["input_ids"][0]
    records, notes = streaming_records(build(family), ids)
    assert list(records) == ["perplexity", "ablation", "decode"] and notes == []


def test_a_model_without_a_language_head_says_so():
    records, notes = streaming_records(build("llama").model, torch.arange(100).repeat(2))
    assert records == {} and "LlamaModel has no language head" in notes[0]


@pytest.mark.slow
def test_a_figure_that_cannot_be_measured_leaves_the_others(monkeypatch):
    def refuse(*_, **__):
        raise SinkscopeError("this machine has no clock.")

    monkeypatch.setattr("sinkscope.experiments.timing.run_timing", refuse)
    ids = inputs("llama", 1, 140)["input_ids"][0]
    records, notes = streaming_records(build("llama"), ids)
    assert list(records) == ["perplexity", "ablation"]
    assert notes == ["Time per token was not measured: this machine has no clock."]


@pytest.mark.slow
def test_the_function_stays_callable_whatever_was_imported_before():
    code = (
        "import sinkscope.reporting.saving, sinkscope; assert callable(sinkscope.report);"
        "from sinkscope.reporting.gather import report; assert report is sinkscope.report"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "sequences" in inspect.signature(sinkscope.report).parameters


def test_a_record_that_a_section_does_not_list_is_named_and_not_announced(llama):
    ids = torch.arange(20)[None] % 50 + 3
    record = sinkscope.measure(llama, ids, progress=False)
    part = sinkscope.Section("Mine", run=lambda passes: {"text": record, "odd": record}, records={"text": "The text"})
    heard = []
    with pytest.raises(SinkscopeError, match=r"the section `Mine` made the record `odd`, which it does not list"):
        gather._measured(
            part, Passes(llama, None, ids[0], ids, progress=False), {}, lambda made, more: heard.append(list(more))
        )
    assert heard == [[]]

"""The softmax section as it is measured: on tiny random models, beside what the experiments give alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sinkscope
from sinkscope.errors import SinkscopeError
from sinkscope.reporting import gather, plan, softmax
from sinkscope.reporting.document import Report
from sinkscope.reporting.passes import Passes
from tests.reporting import naive_softmax
from tests.reporting.byte_tokens import byte_tokenizer
from tests.reporting.test_gather import CAUSAL
from tests.support import naive_record
from tests.support.zoo import build, inputs

WORDS = "Go, see the light. It is good;\n"
SECTION = list(naive_softmax.NAMES)


def tokens_of(family: str = "llama", count: int = 300) -> torch.Tensor:
    return inputs(family, 1, count)["input_ids"][0]


def measured(family: str = "llama", count: int = 300):
    return softmax_records(build(family), tokens_of(family, count))


def softmax_records(model, tokens: torch.Tensor, tokenizer=None):
    """The records of the section and its notes, of a text [token] without a token in front."""
    passes = Passes(model, tokenizer, tokens, tokens[None], progress=False)
    return gather._measured(softmax.SOFTMAX, passes, CAUSAL)


@pytest.fixture(scope="module")
def records() -> dict:
    found, notes = measured()
    assert list(found) == SECTION and all("needs a tokenizer" in note for note in notes)
    return found


@pytest.mark.slow
def test_every_record_is_what_its_experiment_gives_alone(records):
    model, texts, quiet = build("llama"), sinkscope.segments(tokens_of(), 128, 2), {"progress": False}
    expected = {
        "forced": sinkscope.measure(model, texts, [sinkscope.EvictionEffect(), sinkscope.SinkPurpose()], **quiet),
        "collapse": sinkscope.decompose(model, tokens_of()[None], 64, 4, **quiet),
        "dose": sinkscope.dose_response(model, texts, plan.DOSES, start=32, arms=("sinks", "next"), **quiet),
        "predictability": sinkscope.predictability(model, texts, **quiet),
    }
    for name, alone in expected.items():
        assert set(records[name].data_vars) == set(alone.data_vars)
        for variable in alone.data_vars:
            # to rounding: float32 sums depend on where the tensors lie in memory
            np.testing.assert_allclose(
                records[name][variable], alone[variable], rtol=1e-5, atol=1e-6, err_msg=f"{name} {variable}"
            )
    assert list(records["interventions"]["policy"].values)[:3] == ["nothing", "evict sinks", "evict attended"]
    assert records["predictability"].attrs["start"] == records["dose"].attrs["start"] == 32


@pytest.mark.slow
def test_a_report_of_them_draws_and_says_everything(records):
    report = Report({"text": naive_record.norms_only(), **records})
    assert set(naive_softmax.FIGURES) <= set(report.figures) and set(naive_softmax.TABLES) <= set(report.tables)
    for name in naive_softmax.FIGURES:
        assert report.figures[name].axes and report.finding(name).endswith(".")
    # random weights have no sinks: nothing collapses, and the sentence may not say that it does
    assert report.finding("collapse").endswith("no gap that could be divided.")


@pytest.mark.slow
def test_a_report_measures_the_section_on_its_own_text(tmp_path):
    path = tmp_path / "some text.txt"
    path.write_text(WORDS * 90, encoding="utf-8")
    model = small_llama()
    made = sinkscope.report(model, byte_tokenizer(True), path, sequences=1, length=20, streaming=False, progress=False)
    assert [name for name in made.records if name in SECTION] == SECTION and made.notes == []
    for name in SECTION:
        assert made.records[name].attrs["text"] == "some text.txt" and made.records[name].attrs["bos"] == "yes"
    assert (made.records["forced"].sizes["sequence"], made.records["forced"].sizes["token"]) == (8, 256)
    assert made.records["dose"].sizes["token"] == 128 and made.records["dose"].attrs["start"] == 40
    second, far = made.records["forced"]["token_id"].values[1], len((WORDS * 90).encode()) // 8
    assert second[0] == 0 and byte_tokenizer(True).decode(second[1:11]) == (WORDS * 90)[far : far + 10]
    names = list(made.records["interventions"]["policy"].values)
    assert {"evict delimiters", "first tokens to line breaks", "start 10 later", "evict random"} <= set(names)
    without = sinkscope.report(
        model, byte_tokenizer(True), path, sequences=1, length=20, streaming=False, softmax=False, progress=False
    )
    assert not set(SECTION) & set(without.records) and without.notes == []


def small_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=1024, bos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "there", "why"),
    [
        ("opt", {"forced", "dose", "interventions", "predictability"}, "learned absolute positions"),
        (
            "falcon_alibi",
            {"forced", "interventions", "predictability"},
            "does not use transformers' attention interface",
        ),
    ],
)
def test_what_a_family_cannot_take_is_left_out_with_the_reason_and_the_rest_is_there(family, there, why):
    records, notes = measured(family, 140)
    assert set(records) == there and any(why in note for note in notes)
    report = Report({"text": naive_record.norms_only(), **records})
    for name in report.figures:
        assert report.figures[name].axes
    said = " ".join(notes)
    for name, words in (("collapse", "collapse decomposed"), ("dose", "ose and response")):
        assert (words in said) == (name not in there)


def test_what_is_refused_for_one_reason_is_one_note():
    _, notes = measured("mpt", 140)
    (note,) = [note for note in notes if note.startswith("`evict")]
    assert note.startswith(
        "`evict sinks`, `evict attended`, `evict recent`, `evict delimiters` left out of the interventions"
    )
    assert note.count("no key can be taken from it") == 1


@pytest.mark.slow
def test_interventions_that_a_text_has_nothing_for_are_left_out_by_name():
    tokenizer = byte_tokenizer(False)
    words = torch.full((300,), tokenizer("a")["input_ids"][0])
    found, notes = softmax_records(small_llama(), words, tokenizer)
    assert "evict delimiters" not in found["interventions"]["policy"].values
    assert any(note.startswith("`evict delimiters` left out of the interventions: ") for note in notes)


@pytest.mark.slow
def test_a_step_that_fails_leaves_the_others(monkeypatch):
    def refuse(*_, **__):
        raise SinkscopeError("there is a reason.")

    monkeypatch.setattr("sinkscope.experiments.doses.dose_response", refuse)
    found, notes = measured(count=140)
    assert list(found) == [name for name in SECTION if name != "dose"]
    assert "Dose and response was not measured: there is a reason." in notes


def test_a_model_without_a_language_head_gives_its_forced_mass():
    found, notes = softmax_records(build("llama").model, tokens_of())
    assert list(found) == ["forced"] and all("no language head" in note for note in notes)


def test_the_sizes_grow_with_the_text_up_to_those_of_a_long_one():
    model = build("llama")
    assert softmax.sizes_of(model, 140, False) == (1, 128, 32)
    assert softmax.sizes_of(model, 10_000, False) == (8, 256, 40)
    model.config.max_position_embeddings = 96
    assert softmax.sizes_of(model, 10_000, True) == (8, 96, 24)
    with pytest.raises(SinkscopeError, match="it needs 64 tokens, and there are 63"):
        softmax.sizes_of(model, 63, False)

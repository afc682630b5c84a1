"""Plans: what a report is to measure, hashed before anything is, and refused where the call says otherwise."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

import sinkscope
from sinkscope import Plan
from sinkscope.errors import SinkscopeError
from sinkscope.models.weights import weights_hash
from sinkscope.reporting.planned import pinned
from tests.reporting.byte_tokens import byte_tokenizer
from tests.reporting.test_several_texts import llama, written  # noqa: F401

SMALL = {"segments": 3, "length": 40, "streaming": False, "softmax": False}


@pytest.fixture
def text(tmp_path) -> Path:
    return written(tmp_path, "book.txt", "abcd ")


def follow(model: LlamaForCausalLM, plan, **options):
    return sinkscope.report(model, byte_tokenizer(False), plan=plan, progress=False, **options)


def test_the_hash_is_of_what_a_plan_says_however_it_is_written(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text("epsilon: 0.3\ntexts: demo\n# the rest is as ever\n")
    plan = Plan.of(path)
    assert plan == Plan() == Plan.of({"texts": ["demo"], "doses": [0, 2, -2, "-inf", -4]})
    canonical = json.dumps(plan.content, sort_keys=True, separators=(",", ":"))
    assert plan.sha256 == hashlib.sha256(canonical.encode()).hexdigest()
    assert Plan(epsilon=0.2).sha256 != plan.sha256
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Plan.of(Plan(epsilon=0.2, starts="random", seed=3).save(tmp_path / "written.yaml"))
    edited = tmp_path / "edited.yaml"
    edited.write_text((tmp_path / "written.yaml").read_text().replace("epsilon: 0.2", "epsilon: 0.1"))
    with pytest.warns(UserWarning, match="edited.yaml was changed since it was written: .* SHA-256"):
        assert Plan.of(edited).sha256 == Plan(epsilon=0.1, starts="random", seed=3).sha256
    assert again == Plan(epsilon=0.2, starts="random", seed=3)
    assert again.sha256 in (tmp_path / "written.yaml").read_text().splitlines()[0]
    with pytest.raises(SinkscopeError, match="is there already"):
        again.save(path)


@pytest.mark.slow
def test_numbers_by_a_plan_are_those_of_the_same_arguments(llama, text):  # noqa: F811
    plain = sinkscope.report(llama, byte_tokenizer(False), text, progress=False, **SMALL)
    planned = follow(llama, {"texts": [str(text)], **SMALL})
    assert set(planned.records) == set(plain.records) and planned.headline == plain.headline
    for name, record in plain.records.items():
        for variable in record.data_vars:
            np.testing.assert_array_equal(planned.records[name][variable], record[variable])
    assert planned.tables["summary"].equals(plain.tables["summary"])


@pytest.mark.usefixtures("one_format")
@pytest.mark.slow
def test_hash_time_and_texts_stand_in_notes_records_page_and_manifest(llama, text, tmp_path):  # noqa: F811
    plan = Plan(texts=str(text), **SMALL)
    made = follow(llama, plan)
    of_text = hashlib.sha256(text.read_bytes()).hexdigest()
    assert plan.sha256 in made.notes[0] and of_text in made.notes[0]
    folder = made.save(tmp_path / "report", progress=False)
    for record in sinkscope.Report.open(folder).records.values():
        assert record.attrs["plan_sha256"] == plan.sha256 and record.attrs["text_sha256"] == of_text
        assert Plan.of(json.loads(record.attrs["plan"])) == plan and record.attrs["plan_read"] in made.notes[0]
    said = json.loads((folder / "manifest.json").read_text())["plan"]
    assert said["sha256"] == plan.sha256 and said["text_sha256"] == [of_text]
    assert Plan.of(said["content"]) == plan
    page = (folder / "report.html").read_text()
    assert plan.sha256 in page and made.records["text"].attrs["plan_read"] in page


@pytest.mark.slow
def test_a_report_without_a_plan_says_nothing_of_one(llama, text):  # noqa: F811
    made = sinkscope.report(llama, byte_tokenizer(False), text, progress=False, **SMALL)
    assert not [name for name in made.records["text"].attrs if name.startswith("plan")] and made.notes == []


@pytest.mark.slow
def test_the_threshold_is_that_of_the_plan_in_headline_and_tables(llama, text):  # noqa: F811
    made = follow(llama, {"texts": str(text), **SMALL, "epsilon": 0.07})
    record = made.records["text"]
    alpha = record["sink_mass"].isel(sink=0).mean("query")
    rate = float((alpha > 0.07).mean())
    assert f"{100 * rate:.0f}% of heads give it α > 0.07" in made.headline
    sensitivity = made.tables["sensitivity"].query("headline == 'sink rate' and varied == 'epsilon'")
    assert sensitivity.set_index("level").loc["0.07", "value"] == pytest.approx(rate)
    assert float(sinkscope.sink_rate(record, 0.07)) == pytest.approx(rate)


@pytest.mark.slow
def test_policies_doses_interventions_and_margin_are_those_of_the_plan(llama, text):  # noqa: F811
    plan = {
        "texts": str(text), "segments": 3, "length": 40, "cache": 100, "sinks": 2, "margin": 0.5, "doses": [-1, 0],
        "policies": ["dense", "window", "sinks", "phantom"], "interventions": ["sinks", "shift"], "seed": 5,
    }  # fmt: skip
    made = follow(llama, plan)
    names = made.records["perplexity"]["policy"].values.tolist()
    assert names[:3] == ["dense", "window 100", "sinks 2+98"] and "zeroed" in names[3] and len(names) == 4
    assert made.records["dose"]["dose"].values.tolist() == [-1.0, 0.0]
    effects = made.tables["interventions"].query("role == 'effect'")["intervention"]
    assert len(effects) == 2 and made.records["interventions"].attrs["seed"] == 5
    assert "within 50%" in made.finding("effects") and made.notes[1:] == []


@pytest.mark.slow
def test_a_cache_that_a_text_has_no_room_for_is_noted(llama, text):  # noqa: F811
    made = follow(llama, {"texts": str(text), "segments": 3, "length": 40, "cache": 200, "softmax": False})
    assert "Caches keep 128 tokens, not 200" in " ".join(made.notes)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b"epsilons: 0.3", "'epsilons' is no part of a plan; did you mean 'epsilon'"),
        (b"epsilon: much", "epsilon='much' is not a number"),
        (b"epsilon: 2", "epsilon=2"),
        (b"margin: 0", "margin=0"),
        (b"segments: 2.5", "segments=2.5 is not a whole number"),
        (b"segments: 2\nsequences: 2", "two ways to read a text"),
        (b"streaming: sometimes", "streaming='sometimes' is not True or False"),
        (b"policies: [dense, window]", "lack sinks"),
        (b"policies: [dense, window, sinks, dreams]", "'dreams' is no word of policies"),
        (b"doses: [1, 2]", "lack 0"),
        (b"doses: []", "give different numbers"),
        (b"interventions: []", "is empty"),
        (b"sinks: 20\ncache: 16", "20 sinks leave no window"),
        (b"texts: []", "texts=.* is empty"),
        (b"texts: [3]", "3 names no text"),
        (b"texts: [{source: demo, sha256: 12}]", "is no SHA-256"),
        (b"model: {source: demo, weights: abc}", "no hash of weights"),
        (b"model: {dtype: float32}", "names no model"),
        (b"model: 5", "model=5 names no model"),
        (b"- demo", "holds no plan"),
        (b"length: [1", "cannot be read as YAML"),
        (b"seed: 1\nseed: 2", "'seed' twice"),
    ],
)
def test_what_is_no_plan_is_refused_in_a_sentence_before_a_model_is_loaded(tmp_path, said, words):
    path = tmp_path / "plan.yaml"
    path.write_bytes(said)
    with pytest.raises(SinkscopeError, match=words):
        sinkscope.report("/no/such/model", plan=path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"segments": 4}, "segments=4 contradicts the plan, which says 3"),
        ({"sequences": 3}, "sequences=3 contradicts the plan, which says None"),
        ({"streaming": True}, "streaming=True contradicts the plan"),
        ({"text": "demo"}, r"texts=\['demo'\] contradicts the plan"),
        ({"dtype": "bfloat16"}, "dtype='bfloat16' contradicts the plan, which does not say so"),
        ({"device": "cuda"}, "device='cuda' contradicts the plan, which says 'cpu'"),
        ({"model": "other"}, "model='other' contradicts the plan, which says 'mine'"),
    ],
)
def test_a_call_that_says_otherwise_than_its_plan_is_refused(text, given, words):
    plan = {"model": {"source": "mine", "device": "cpu"}, "texts": [str(text)], **SMALL}
    with pytest.raises(SinkscopeError, match=words):
        sinkscope.report(plan=plan, **given)


@pytest.mark.slow
def test_a_call_that_says_what_its_plan_says_goes_well(llama, text):  # noqa: F811
    made = follow(llama, {"texts": [str(text)], **SMALL}, text=text, **SMALL)
    assert made.records["text"].sizes["sequence"] == 3


@pytest.mark.slow
def test_a_plan_for_another_model_is_refused_by_weights_or_by_name(llama, text):  # noqa: F811
    own = {"texts": str(text), **SMALL}
    follow(llama, pinned(Plan(**own, model="mine"), llama))
    with pytest.raises(SinkscopeError, match="plan is for 'mine', and this model is 'LlamaForCausalLM'"):
        follow(llama, {**own, "model": "mine"})
    with pytest.raises(SinkscopeError, match="plan is for bfloat16, and this model is in float32"):
        follow(llama, {**own, "model": {"source": "mine", "dtype": "bfloat16"}})
    other = LlamaForCausalLM(llama.config).eval()
    with torch.no_grad():
        other.model.embed_tokens.weight[0, 0] += 1
    with pytest.raises(SinkscopeError, match=f"weights have the hash {weights_hash(llama)[:16]}"):
        follow(other, pinned(Plan(**own, model="mine"), llama))


def test_a_text_that_is_gone_or_another_than_the_plan_says_is_refused(llama, text):  # noqa: F811
    plan = pinned(Plan(texts=str(text), model="mine", **SMALL), llama)
    assert plan.texts[0]["sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    text.write_text("another text altogether, " * 20)
    with pytest.raises(SinkscopeError, match=r"book\.txt is another text than the plan says"):
        follow(llama, plan)
    text.unlink()
    with pytest.raises(SinkscopeError, match="is not a file"):
        follow(llama, plan)


def test_a_plan_names_texts_and_so_is_not_for_what_a_processor_made(llama):  # noqa: F811
    with pytest.raises(SinkscopeError, match="what a processor made is none"):
        sinkscope.report(llama, None, {"input_ids": torch.zeros(1, 20, dtype=torch.long)}, plan={})


@pytest.mark.slow
def test_items_of_ones_own_are_told_not_to_be_planned(llama, text):  # noqa: F811
    made = follow(llama, {"texts": str(text), **SMALL}, items=sinkscope.ITEMS[:2])
    assert made.notes[0].endswith("Items or sections of one's own are no part of a plan.")


def test_what_is_written_is_yaml_that_anyone_can_read(tmp_path):
    said = yaml.safe_load(Plan().save(tmp_path / "plan.yaml").read_text())
    assert said["texts"] == [{"source": "demo"}] and said["policies"] == ["dense", "window", "recompute", "sinks"]
